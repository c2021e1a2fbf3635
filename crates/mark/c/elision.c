/*
 * libelision: the functions of elision.h for programs that are linked with a library, and for other languages.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#define _GNU_SOURCE
#define ELISION_BUILD
#include "elision.h"
