#define HFK_NAMESPACE avx512bf16
#include "table.h"
