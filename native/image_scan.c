/*
 * Reads one image of a set once, from its beginning to its end: checks that each message and the data
 * behind it are complete, and extracts the fields that a check needs as rows of numbers.
 *
 * The bytes are not trusted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libcriu_types.h"
#include "fields.h"
#include "pagemap.h"
#include "pycriu_native.h"

enum {
	WINDOW_SIZE = 1 << 16,	 /* bytes of one read */
	MAX_MESSAGE = 1 << 28,	 /* bytes of one message; the largest real ones are a few MiB */
	MAX_DEPTH = 3,		 /* length of a path of field numbers */
	MAX_COLUMNS = 32,
};

struct column {
	const uint8_t *path;
	size_t depth;
	uint64_t unset;
};

struct scan {
	int fd;
	uint64_t size, at;
	/* the part in memory: `held` bytes from the offset `start` on */
	uint8_t *window;
	size_t capacity, held;
	uint64_t start;
	bool no_memory;
	/* the rows */
	struct column columns[MAX_COLUMNS];
	size_t n_columns;
	const uint8_t *each;
	size_t each_depth;
	uint64_t row[1 + MAX_COLUMNS]; /* of the current message */
	uint64_t *out;
	size_t out_capacity, n_out;
};

/* Bytes of the file; NULL: the file is too short, or there is no memory. */
static const uint8_t *bytes_at(struct scan *scan, uint64_t at, size_t size)
{
	if (at < scan->start || at + size > scan->start + scan->held) {
		ssize_t n_read;

		if (size > scan->capacity) {
			uint8_t *larger = realloc(scan->window, size);

			if (!larger) {
				scan->no_memory = true;
				return NULL;
			}
			scan->window = larger;
			scan->capacity = size;
		}
		n_read = pread(scan->fd, scan->window, scan->capacity, (off_t)at);
		scan->start = at;
		scan->held = n_read < 0 ? 0 : (size_t)n_read;
		if (size > scan->held)
			return NULL;
	}
	return scan->window + (at - scan->start);
}

/* The next message; false: the file is cut short. */
static bool next_message(struct scan *scan, struct bytes *message)
{
	uint64_t rest = scan->size - scan->at;
	const uint8_t *head = rest < 4 ? NULL : bytes_at(scan, scan->at, 4);
	uint32_t length;

	if (!head)
		return false;
	length = head[0] | head[1] << 8 | head[2] << 16 | (uint32_t)head[3] << 24;
	if (length > MAX_MESSAGE || length > rest - 4)
		return false;
	message->at = bytes_at(scan, scan->at + 4, length);
	if (!message->at)
		return false;
	message->end = message->at + length;
	scan->at += 4 + (uint64_t)length;
	return true;
}

static bool skip_data(struct scan *scan, uint64_t size)
{
	if (size > scan->size - scan->at)
		return false;
	scan->at += size;
	return true;
}

/* A number, or the first bytes of a string; it is not 0 for a string that is not empty. */
static uint64_t value_of(const struct field *field)
{
	uint64_t value = 0;

	if (field->kind == VARINT)
		return field->value;
	for (size_t i = 0; i < 8 && field->inner.at + i < field->inner.end; i++)
		value |= (uint64_t)field->inner.at[i] << (8 * i);
	return value;
}

static void emit(struct scan *scan, const uint64_t *row)
{
	size_t width = 1 + scan->n_columns;

	if (scan->n_out + width <= scan->out_capacity)
		memcpy(scan->out + scan->n_out, row, width * sizeof(*row));
	scan->n_out += width;
}

static bool starts_with(const uint8_t *path, size_t depth, const uint8_t *start, size_t length)
{
	return length <= depth && !memcmp(path, start, length);
}

/* Writes the fields of the message at `path` into the row; false: it is no message. */
static bool read_columns(struct scan *scan, uint64_t *row, struct bytes in, uint8_t *path, size_t depth)
{
	struct field field;

	while (in.at < in.end) {
		bool deeper = false;

		if (!read_field(&in, &field))
			return false;
		if ((field.kind != VARINT && field.kind != BYTES) || field.number > UINT8_MAX)
			continue;
		path[depth] = field.number;
		for (size_t i = 0; i < scan->n_columns; i++) {
			const struct column *column = &scan->columns[i];

			if (!starts_with(column->path, column->depth, path, depth + 1))
				continue;
			if (column->depth == depth + 1)
				row[1 + i] = value_of(&field);
			else
				deeper = true;
		}
		if (deeper && field.kind == BYTES && depth + 1 < MAX_DEPTH &&
		    !read_columns(scan, row, field.inner, path, depth + 1))
			return false;
	}
	return true;
}

/* Writes a row for each message or number at the scan's path. Returns their number. */
static size_t read_each(struct scan *scan, struct bytes in, uint8_t *path, size_t depth)
{
	struct field field;
	size_t count = 0;

	while (in.at < in.end && read_field(&in, &field)) {
		uint64_t row[1 + MAX_COLUMNS];

		if ((field.kind != VARINT && field.kind != BYTES) || field.number != scan->each[depth])
			continue;
		path[depth] = field.number;
		if (depth + 1 < scan->each_depth) {
			if (field.kind == BYTES)
				count += read_each(scan, field.inner, path, depth + 1);
			continue;
		}
		memcpy(row, scan->row, sizeof(row));
		for (size_t i = 0; i < scan->n_columns; i++) {
			const struct column *column = &scan->columns[i];

			if (starts_with(column->path, column->depth, scan->each, scan->each_depth))
				row[1 + i] = column->depth == scan->each_depth ? value_of(&field) :
										 column->unset;
		}
		if (field.kind == BYTES && depth + 1 < MAX_DEPTH)
			read_columns(scan, row, field.inner, path, depth + 1);
		emit(scan, row);
		count++;
	}
	return count;
}

static bool read_message(struct scan *scan, struct bytes message)
{
	uint8_t path[MAX_DEPTH];

	for (size_t i = 0; i < scan->n_columns; i++)
		scan->row[1 + i] = scan->columns[i].unset;
	if (!read_columns(scan, scan->row, message, path, 0))
		return false;
	if (!scan->each_depth || !read_each(scan, message, path, 0))
		emit(scan, scan->row);
	return true;
}

/* The value of a numeric field, for the size of a trailer; 0 if it is unset. */
static uint64_t number_of(struct bytes in, uint32_t number)
{
	uint64_t value = 0;
	struct field field;

	while (in.at < in.end && read_field(&in, &field))
		if (field.number == number && field.kind == VARINT)
			value = field.value;
	return value;
}

static uint64_t round_up(uint64_t size, uint64_t unit)
{
	return size > UINT64_MAX - unit ? size : (size + unit - 1) / unit * unit;
}

static uint64_t saturating_add(uint64_t one, uint64_t two)
{
	return one > UINT64_MAX - two ? UINT64_MAX : one + two;
}

/* Skips the data behind a message; false: it is incomplete. `trailer_size` receives its size. */
static bool skip_trailer(struct scan *scan, int trailer, struct bytes message, bool first, uint64_t *trailer_size)
{
	struct bytes queued;

	*trailer_size = 0;
	switch (trailer) {
	case PN_LENGTH:
		*trailer_size = number_of(message, 2);
		break;
	case PN_QUEUES:
		*trailer_size = saturating_add(number_of(message, 1), number_of(message, 3));
		break;
	case PN_PAIRS:
		*trailer_size = saturating_add(number_of(message, 2), number_of(message, 3));
		break;
	case PN_SEGMENT:
		*trailer_size = number_of(message, 3) ? 0 : round_up(number_of(message, 2), 4);
		break;
	case PN_SEMAPHORES:
		*trailer_size = round_up(2 * (uint64_t)(uint32_t)number_of(message, 2), 8);
		break;
	case PN_GHOST: /* the rest of the file, or chunks, each behind a message */
		if (!first)
			*trailer_size = number_of(message, 1);
		else if (!number_of(message, 9))
			*trailer_size = scan->size - scan->at;
		break;
	case PN_MESSAGES: {
		uint64_t count = number_of(message, 3);

		while (count--)
			if (!next_message(scan, &queued) || queued.at == queued.end ||
			    !skip_data(scan, round_up(number_of(queued, 2), 8)))
				return false;
		break;
	}
	}
	return skip_data(scan, *trailer_size);
}

static int scan_messages(struct scan *scan, int trailer, struct pn_runs *runs)
{
	struct bytes message;
	uint64_t trailer_size;

	for (bool first = true; scan->at < scan->size; first = false) {
		if (!next_message(scan, &message))
			return PN_CUT_SHORT;
		if (trailer == PN_RUNS && !first) {
			if (pn_add_entry(runs, message))
				return 0; /* runs->problem */
			continue;
		}
		/* An empty message is read from zeros, of a hole or behind the end of what was written. The
		 * first number of the row, the size of the trailer, is set below. */
		if ((!first && message.at == message.end) || !read_message(scan, message))
			return PN_NO_MESSAGE;
		size_t row = scan->n_out;

		if (trailer == PN_NO_TRAILER || trailer == PN_RUNS)
			continue;
		if (!skip_trailer(scan, trailer, message, first, &trailer_size))
			return PN_CUT_SHORT;
		row -= 1 + scan->n_columns;
		if (scan->n_out <= scan->out_capacity)
			scan->out[row] = trailer_size;
	}
	return 0;
}

static bool read_paths(struct scan *scan, const uint8_t *columns, const uint8_t *each)
{
	while (*columns) {
		struct column *column = &scan->columns[scan->n_columns++];

		if (scan->n_columns > MAX_COLUMNS)
			return false;
		column->path = columns;
		column->depth = strlen((const char *)columns);
		column->unset = columns[column->depth + 1];
		columns += column->depth + 2;
		if (column->depth > MAX_DEPTH)
			return false;
	}
	scan->each = each;
	scan->each_depth = strlen((const char *)each);
	return scan->each_depth <= MAX_DEPTH;
}

int64_t pn_scan_image(int directory, const char *name, const uint8_t *magic, size_t n_magic, int trailer,
		      const uint8_t *columns, const uint8_t *each, uint64_t *out, size_t capacity,
		      struct pn_runs *runs)
{
	struct scan scan = { .out = out, .out_capacity = capacity };
	const uint8_t *head;
	struct stat status;
	size_t length;
	int result = 0;

	if (!read_paths(&scan, columns, each))
		return -EINVAL;
	scan.fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (scan.fd < 0)
		return -errno;
	if (fstat(scan.fd, &status))
		result = -errno;
	else if (!S_ISREG(status.st_mode))
		result = -EINVAL;
	scan.size = result ? 0 : (uint64_t)status.st_size;
	scan.capacity = scan.size < WINDOW_SIZE ? scan.size + 1 : WINDOW_SIZE;
	scan.window = malloc(scan.capacity);
	if (!result && !scan.window)
		scan.no_memory = true;
	if (!result && scan.window) {
		length = scan.size < n_magic ? scan.size : n_magic;
		head = bytes_at(&scan, 0, length);
		if (!head)
			result = PN_CUT_SHORT;
		else if (memcmp(head, magic, length))
			result = PN_OTHER_KIND;
		else if (length < n_magic)
			result = PN_CUT_SHORT;
	}
	scan.at = n_magic;
	if (!result && scan.window)
		result = scan_messages(&scan, trailer, runs);
	if (scan.no_memory)
		result = -ENOMEM;
	free(scan.window);
	close(scan.fd);
	return result ? result : (int64_t)scan.n_out;
}
