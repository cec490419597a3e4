/*
 * Compares numbers that are written in Python with the headers of the architecture, and our
 * declarations of libcriu with the system's header, by including both: a difference is a compile
 * error. Produces no code.
 */
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <linux/sockios.h>
#include <linux/un.h>

/* _system/system_calls.py */
_Static_assert(KCMP_FILE == 0 && KCMP_VM == 1 && KCMP_FS == 3 && KCMP_SIGHAND == 4, "kcmp");
_Static_assert(KCMP_EPOLL_TFD == 7, "kcmp");
/* diagnostics/preflight/unix_names.py */
_Static_assert(SIOCUNIXFILE == 0x89E0, "SIOCUNIXFILE");
/* snapshots/namespaces.py, guest.py */
_Static_assert(CLONE_NEWNS == 0x20000 && CLONE_NEWUTS == 0x4000000 && CLONE_NEWNET == 0x40000000, "clone");
_Static_assert(CLONE_NEWPID == 0x20000000 && CLONE_NEWUSER == 0x10000000, "clone");
_Static_assert(CLONE_PARENT == 0x8000 && CLONE_PIDFD == 0x1000, "clone");
_Static_assert(CLONE_CHILD_CLEARTID == 0x200000 && CLONE_CHILD_SETTID == 0x1000000, "clone");

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
