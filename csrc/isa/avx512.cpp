#define HFK_NAMESPACE avx512
#include "table.h"
