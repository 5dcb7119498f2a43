#define HFK_NAMESPACE amx
#include "isa.h"
