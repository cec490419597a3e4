/*
 * Compares our declarations of libcriu with the system's header by including both: a different
 * function or constant is a compile error. Produces no code.
 */
#ifdef PN_HAVE_CRIU_H

#include <stddef.h>
#include <criu/criu.h>

/* Older headers lack these two enums, which our declarations use. */
enum criu_image_io_mode;
enum criu_compress_mode;

#include "libcriu.h"

PN_CHECK_VALUES

#endif

typedef int pn_abi_check_is_not_empty;
