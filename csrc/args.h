// The argument structs of all ops.
#pragma once
#include "common.h"
#include "frozen_linear_args.h"
