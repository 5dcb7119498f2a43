#define HFK_NAMESPACE generic
#include "table.h"
