#define HFK_NAMESPACE avx2
#include "table.h"
