/*
 * What our own C adds to libcriu: protobuf messages by field name, a worker process, and
 * paths that are looked at on the way. Read by cffi and by the C files alike.
 *
 * Return values: 0 or a count on success, a negative errno on failure.
 */

/* ---- functions.c: which of libcriu's functions the loaded library has ---- */

struct pn_function {
	const char *name;
	const void *address; /* NULL: the loaded libcriu lacks it */
};

const struct pn_function *pn_function_at(size_t index); /* NULL past the end */
const char *pn_libcriu_version(void); /* of the library that is loaded */

/* What the build recorded; an empty string where nothing was given. */
const char *pn_built_program(void);

/* ---- message.c: libcriu's protobuf messages, by the field names of rpc.proto ---- */

enum pn_message_type { PN_OPTS, PN_REQUEST, PN_RESPONSE };

struct pn_field {
	unsigned index;
	const char *name;
	int type;     /* enum pn_field_type */
	int repeated;
	size_t count; /* values present: 1 unless repeated */
};

enum pn_field_type { PN_INT, PN_BOOL, PN_TEXT, PN_MESSAGE };

void *pn_opts_message(criu_opts *opts); /* NULL: not the layout we know */
int pn_free_opts(criu_opts *opts);

/* Options as pn_pack has packed them take the place of those in the handle. -ENOMEM. */
int pn_load_opts(criu_opts *opts, size_t length, const uint8_t *data);

void *pn_new(int type);
void *pn_unpack(int type, size_t length, const uint8_t *data); /* NULL: not such a message, or ENOMEM in errno */
size_t pn_packed_size(const void *message);
size_t pn_pack(const void *message, uint8_t *out);
void pn_free(void *message);

/* A repeated field is appended to. -ENOENT: this libcriu does not know the field;
 * -EINVAL: the field holds another type; -ENOMEM. */
int pn_set_int(void *message, const char *field, int64_t value);
int pn_set_text(void *message, const char *field, const char *value);
void *pn_add_message(void *message, const char *field); /* NULL: unknown, or no memory */
int pn_knows(int type, const char *field);
size_t pn_features_size(void); /* of libcriu's own struct criu_feature_check */

/* The first field from this index on that is present; -ENOENT: there is none. */
int pn_next_field(const void *message, unsigned from, struct pn_field *out);
int64_t pn_get_int(const void *message, unsigned index, size_t item);
const char *pn_get_text(const void *message, unsigned index, size_t item);
const void *pn_get_message(const void *message, unsigned index, size_t item);

/* ---- spawn.c: a CRIU worker, started without copying the caller's page tables ---- */

struct pn_worker {
	/* in */
	const char *program;
	char *const *argv;
	char *const *envp;
	int input;         /* becomes descriptor 0; -1: /dev/null */
	int output;        /* becomes descriptors 1 and 2 */
	const int *keep;   /* passed on under their own numbers; every other one is closed */
	size_t n_keep;
	int outside;       /* not our child: started through a process that exits at once */
	int private_files; /* what it creates is for its own user only */
	int steady;        /* HUP, INT, QUIT and TERM are blocked */
	int limited;       /* XFSZ is ignored: beyond a file size limit, write() fails */
	const int *bound_to; /* sockets, also in keep: its group is killed when the peer of one is closed */
	size_t n_bound_to;
	int namespaces;    /* CLONE_NEW* flags of the namespaces that it gets; not with outside */
	/* out */
	int pid;
	int pidfd;
};

int pn_spawn(struct pn_worker *worker);

/* ---- worker.c: what it is reached by, and the requests to a fork server ---- */

struct pn_ends {
	int ours, theirs; /* of the socket */
	int output;	  /* a memory file, for its standard output and error */
};

enum { PN_MOST_INHERITED = 251 }; /* descriptors, by a worker of a fork server */

int pn_make_ends(struct pn_ends *ends); /* on numbers above 2, closed on exec */
/* The pid of a worker that has `keep` under the same numbers, or a negative errno. */
int pn_fork_worker(int server, const struct pn_ends *ends, const int *keep, size_t n_keep, int milliseconds);
/* Have it hold a template: the descriptors of its table, and of the files with its pages. */
int pn_load_template(int server, const int *fds, size_t n_fds, uint64_t table_size, int milliseconds);

/* ---- kernel.c: system calls that Python 3.11 has no function for ---- */

int pn_enter_network(int fd);        /* setns, of the calling thread alone */
int pn_enter_mounts(int fd);	     /* setns, of the calling thread, which gets a root of its own */
int pn_cover_proc(void);	     /* /proc of the caller's pid namespace on that which is there */
int pn_uncover_proc(void);
int pn_fd_of(int pidfd, int fd);     /* pidfd_getfd: our own copy of another's descriptor */
/* kcmp: 0 for the same resource, 1 to 3 for others; a negative errno. */
int pn_kcmp(int pid, int other, int type, unsigned long index, unsigned long other_index);
int pn_io_priority(int pid);	     /* ioprio_get of a thread; a negative errno */
int pn_namespace_owner(int fd);	     /* NS_GET_USERNS: a descriptor; a negative errno */
/* A directory in memory without a name, which is gone when its descriptor is closed. Linux 5.2. */
int pn_unnamed_directory(void);
/* All of them, on the calling thread; which were blocked before: the lowest bit is signal 1. */
uint64_t pn_block_signals(void);
void pn_set_signals(uint64_t blocked);

/* ---- speak.c: one of libcriu's verbs, with its answer ready ---- */

struct pn_exchange {
	/* in */
	const uint8_t *answer;
	size_t n_answer;
	uint8_t *said;
	size_t size; /* the most that the verb may say */
	/* out */
	int room; /* with -E2BIG: how much one message can carry here */
	int result; /* the verb's */
	size_t n_said;
};

int pn_run_verb(criu_opts *opts, int (*verb)(criu_opts *), struct pn_exchange *talk); /* -E2BIG: size is */
int pn_request_features(criu_opts *opts); /* criu_local_feature_check, which has more parameters */

/* ---- exchange.c: listening to CRIU ---- */

enum pn_heard {
	PN_HEARD_NOTHING, /* the caller has said something, perhaps, or the process has ended */
	PN_HEARD_MESSAGE,
	PN_HEARD_TOO_MUCH, /* more bytes or descriptors than there is room for */
	PN_HEARD_END,
	PN_HEARD_TIMEOUT,
};

struct pn_words {
	const char *at;
	size_t length;
};

struct pn_receiver {
	/* in: messages that get an answer at once, and the answer */
	const struct pn_words *quiet;
	size_t n_quiet;
	struct pn_words yes;
	/* in: -1 where there is none */
	int sock;
	int pidfd; /* becomes readable when the process ends */
	int wake;  /* an eventfd that is written to when the caller has said something */
	char *buffer;
	size_t size;
	/* out */
	size_t length;
	int fds[4]; /* that came along: owned by who asked */
	size_t n_fds;
};

/* The next message that is not answered at once, if one comes in time (-1: wait for ever): enum
 * pn_heard. */
int pn_receive(struct pn_receiver *ear, int milliseconds);

/* ---- surroundings.c: what a process takes over from who starts it ---- */

enum pn_part_kind {
	PN_PART_LINK,	/* where a symbolic link leads */
	PN_PART_WHOLE,	/* what is in a file */
	PN_PART_LINES,	/* its lines that begin with one of ``only``: names, each with its zero, then one more */
	PN_PART_FIELDS,	/* of /proc/PID/stat, the fields that have an x in ``only`` */
	PN_PART_PLACE,	/* which directory, through which mount */
	PN_PART_STAMP,	/* which file, how large, when changed */
	PN_PART_STATE,	/* of the calling thread: rlimits, personality, timer slack, io priority */
};

struct pn_part {
	int kind; /* enum pn_part_kind */
	const char *path; /* of a place or a stamp from the working directory, else from /proc/thread-self */
	const char *only;
	int needed; /* what lacks it is known too little of */
};

/* The bytes that all these parts come to; -ENOBUFS: there are more; -errno of one that is needed. */
long pn_read_state(const struct pn_part *parts, size_t count, char *buffer, size_t size);

/* ---- trust.c: whether another user could change what a path leads to ---- */

enum pn_flaw { PN_OWNER = 1, PN_WRITABLE, PN_LINK };

struct pn_refusal {
	int why; /* enum pn_flaw */
	unsigned uid, gid, mode; /* of what is at fault */
	char shown[4096];	 /* its path; empty for a descriptor */
};

enum pn_walking {
	PN_FOLLOW = 1, /* a symbolic link at the end too */
	PN_MAKE = 2,   /* a directory at the end where there is nothing, mode 0700 */
};

/* A descriptor (O_PATH) of what the path leads to, if only root and the user ``own`` can change
 * it; -EPERM with ``why`` set: see the refusal. */
void pn_trust_unmapped_root(unsigned uid);
int pn_trust_path(const char *path, int flags, unsigned own,
		  struct pn_refusal *refusal);
int pn_trust_descriptor(int fd, unsigned own, struct pn_refusal *refusal);
/* Whether it is there, others could not change it, and no link is on the way: a look that is quick,
 * and that says no where it is not sure. */
int pn_trust_simple_path(const char *path, unsigned own);
/* Whether others could change none of these paths, links followed; nor, in the first of them, which
 * are directories, any file whose name ends so. */
int pn_trust_all(char *const *paths, size_t n_directories, size_t count, const char *ending, unsigned own);

/* ---- fields.c: what is in a protobuf message that nobody has a description of ---- */

struct pn_value {
	unsigned field;
	int is_bytes;
	uint64_t number; /* or the length of the bytes */
	size_t start;	 /* where these begin */
};

/* The next fields that are numbers or bytes; 0: there are no more; -EINVAL: it is no message. */
int pn_read_fields(const uint8_t *data, size_t length, size_t *at, struct pn_value *out, size_t room);

/* ---- pagemap.c: the runs of a page map, out of the bytes of its image ---- */

enum pn_page_flag { PN_PARENT = 1, PN_LAZY = 2, PN_PRESENT = 4, PN_ALIGNED = 8 };
enum pn_page_sort { PN_STORED, PN_IN_PARENT, PN_LAZILY, PN_SORTS };

enum pn_column {
	PN_START,  /* addresses */
	PN_END,
	PN_FLAGS,  /* enum pn_page_flag */
	PN_OFFSET, /* in the pages file */
	PN_BLOCK,  /* bytes of memory in a compressed block; 0: not compressed */
	PN_SIZES,  /* which of the sizes is that of the run's first block */
	PN_BELOW,  /* one for each sort: bytes of it in the runs before */
	PN_COLUMNS = 9 /* PN_BELOW + PN_SORTS */
};

enum pn_runs_problem {
	PN_GOOD,
	PN_MALFORMED,  /* no pagemap_entry */
	PN_MISPLACED,  /* overlaps the run before, is not at a page, or is beyond all addresses */
	PN_BAD_BLOCKS  /* the blocks cannot hold the pages */
};

struct pn_runs {
	/* in */
	uint64_t page;         /* bytes of one */
	uint64_t *columns;     /* one after the other, each with room for so many runs; or NULL */
	size_t room;
	uint32_t *sizes;       /* of compressed blocks; or NULL */
	size_t sizes_room;
	uint64_t sizes_before; /* in earlier readings */
	/* in and out: zeros before the first reading */
	uint64_t last;         /* where the last run ends */
	uint64_t offset;       /* in the pages file, behind what is stored so far */
	uint64_t below[3];     /* bytes so far: enum pn_page_sort */
	/* out */
	size_t count;
	size_t n_sizes;
	int problem;           /* enum pn_runs_problem */
};

/* Takes whole entries, each with its length before it, until one is incomplete, bad, or has no
 * room. Returns the bytes that were taken. */
size_t pn_read_runs(struct pn_runs *runs, const uint8_t *data, size_t length);

/* The bytes of each sort in ranges of addresses: PN_SORTS numbers for each range. */
void pn_count_between(const uint64_t *const columns[], size_t count, const uint64_t *from,
		      const uint64_t *to, size_t ranges, uint64_t *out);

/* ---- image_scan.c: one image, read from its beginning to its end ---- */

/* What follows each message of an image. */
enum pn_trailer {
	PN_NOTHING,
	PN_LENGTH,     /* as many bytes as field 2 has */
	PN_QUEUES,     /* two queues */
	PN_PAIRS,      /* keys and values */
	PN_SEGMENT,
	PN_SEMAPHORES,
	PN_GHOST,      /* contents of a file, or chunks of it */
	PN_MESSAGES,   /* of a queue, each a message with its text */
	PN_RUNS        /* the entries of a page map, after one other message */
};

enum pn_scan_problem { PN_CUT_SHORT = -10000, PN_OTHER_KIND };

/*
 * Read a regular file that begins with this magic and holds messages: how many numbers its rows
 * have, also where there is room for fewer; or a problem, or a negative errno (-EINVAL: no regular
 * file). A row is the size of what follows the message, then the columns.
 *
 * A column is the numbers of the fields that lead to it, a 0, and the value where it is unset; a 0
 * ends them. Its value is a number, or the first 8 bytes of a string, the first the lowest. There
 * is a row for each message, or, with a path in `each`, for each field at that path; one where
 * there is none. The entries of a page map come into `runs`, which has its problem.
 */
int64_t pn_scan_image(int directory, const char *name, const uint8_t *magic, size_t n_magic, int trailer,
		      const uint8_t *columns, const uint8_t *each, uint64_t *out, size_t room,
		      struct pn_runs *runs);
