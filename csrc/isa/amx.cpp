#define HFK_NAMESPACE amx
#include "table.h"
