#define HFK_NAMESPACE avx512
#include "isa.h"
