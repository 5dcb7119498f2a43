#define HFK_NAMESPACE avx2
#include "isa.h"
