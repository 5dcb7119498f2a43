#define HFK_NAMESPACE generic
#include "isa.h"
