/*
 * Our declarations of libcriu against the system's own header, in one unit: where the two
 * disagree on a function or a constant, the build stops here. Produces no code.
 */
#ifdef PN_HAVE_CRIU_H

#include <stddef.h>
#include <criu/criu.h>

/* Older headers lack these two, and our declarations name them. */
enum criu_image_io_mode;
enum criu_compress_mode;

#include "libcriu.h"

PN_CHECK_VALUES

#endif

typedef int pn_abi_check_is_not_empty;
