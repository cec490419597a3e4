/*
 * The types of libcriu's functions: opaque handles, enumerations, and the one
 * structure that callers fill in. native/abi_check.c compares the values with
 * the system's criu.h.
 */
typedef struct criu_opts criu_opts;
typedef struct criu_notify *criu_notify_arg_t;
typedef void *criu_predump_info;

enum criu_cg_mode {
	CRIU_CG_MODE_IGNORE = 0,
	CRIU_CG_MODE_NONE = 1,
	CRIU_CG_MODE_PROPS = 2,
	CRIU_CG_MODE_SOFT = 3,
	CRIU_CG_MODE_FULL = 4,
	CRIU_CG_MODE_STRICT = 5,
	CRIU_CG_MODE_DEFAULT = 6
};

enum criu_network_lock_method {
	CRIU_NETWORK_LOCK_IPTABLES = 1,
	CRIU_NETWORK_LOCK_NFTABLES = 2,
	CRIU_NETWORK_LOCK_SKIP = 3
};

enum criu_pre_dump_mode {
	CRIU_PRE_DUMP_SPLICE = 1,
	CRIU_PRE_DUMP_READ = 2
};

enum criu_image_io_mode {
	CRIU_IMAGE_IO_WRITEBACK = 0,
	CRIU_IMAGE_IO_DIRECT = 1
};

enum criu_compress_mode {
	CRIU_COMPRESS_OFF = 0,
	CRIU_COMPRESS_BLOCK = 1
};

/* 4.3 has a fourth member; its size is an argument, so older libraries take it too. */
struct criu_feature_check {
	bool mem_track;
	bool lazy_pages;
	bool pidfd_store;
	bool mem_compression;
};
