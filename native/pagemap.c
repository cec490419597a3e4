/*
 * The runs of a page map, out of the bytes of its image: columns of numbers.
 *
 * A large process has hundreds of thousands of runs, each a protobuf message of a dozen bytes.
 * The bytes may come from anywhere. What is taken here is what protobuf takes, but for groups,
 * which CRIU's messages have none of (fields.h); whatever else is refused, and protobuf says why.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "libcriu_types.h"
#include "fields.h"
#include "pagemap.h"
#include "pycriu_native.h"

enum { LARGEST_BLOCK = 4 << 20 }; /* bytes of memory */

struct entry {
	bool has_start, has_compat, has_flags, in_parent, compressed;
	uint64_t start, pages;
	uint32_t compat, flags;
	uint32_t per_block; /* pages */
	bool has_payload, has_per_block;
	size_t n_sizes;
	uint64_t stored;
	uint32_t largest;
};

static bool add_size(struct pn_runs *runs, struct entry *entry, uint32_t size)
{
	if (runs->sizes && runs->n_sizes + entry->n_sizes == runs->sizes_room)
		return false;
	if (runs->sizes)
		runs->sizes[runs->n_sizes + entry->n_sizes] = size;
	entry->n_sizes++;
	entry->stored += size;
	if (size > entry->largest)
		entry->largest = size;
	return true;
}

/* pagemap_blocks: 1 the size of each block, 2 all of them, 3 pages in a block. */
static bool read_blocks(struct pn_runs *runs, struct entry *entry, struct bytes in)
{
	struct field field;
	uint64_t size;

	while (in.at != in.end) {
		if (!read_field(&in, &field))
			return false;
		if (field.number == 1 && field.kind == BYTES) {
			while (field.inner.at != field.inner.end)
				if (!read_varint(&field.inner, &size) || !add_size(runs, entry, size))
					return false;
		} else if (field.kind != VARINT) {
			continue;
		} else if (field.number == 1) {
			if (!add_size(runs, entry, field.value))
				return false;
		} else if (field.number == 2) {
			entry->has_payload = true;
		} else if (field.number == 3) {
			entry->per_block = field.value;
			entry->has_per_block = true;
		}
	}
	return true;
}

/* pagemap_entry: 1 address, 2 pages (32 bits), 3 whether a parent has them, 4 flags, 5 pages,
 * 6 blocks. As in any message, the last one of a field counts, and parts of blocks add up. */
static bool read_entry(struct pn_runs *runs, struct entry *entry, struct bytes in)
{
	struct field field;

	while (in.at != in.end) {
		if (!read_field(&in, &field))
			return false;
		if (field.number == 6 && field.kind == BYTES) {
			entry->compressed = true;
			if (!read_blocks(runs, entry, field.inner))
				return false;
		}
		if (field.kind != VARINT)
			continue;
		switch (field.number) {
		case 1:
			entry->start = field.value;
			entry->has_start = true;
			break;
		case 2:
			entry->compat = field.value;
			entry->has_compat = true;
			break;
		case 3:
			entry->in_parent = field.value != 0;
			break;
		case 4:
			entry->flags = field.value;
			entry->has_flags = true;
			break;
		case 5:
			entry->pages = field.value;
			break;
		}
	}
	return entry->has_start && entry->has_compat &&
	       (!entry->compressed || (entry->has_payload && entry->has_per_block));
}

/* Where the bytes of a run are: what is stored is not lazy, whatever else it could be. */
static int sort_of(uint64_t flags)
{
	if (flags & PN_PRESENT)
		return PN_STORED;
	return flags & PN_PARENT ? PN_IN_PARENT : flags & PN_LAZY ? PN_LAZILY : -1;
}

static int add_run(struct pn_runs *runs, struct entry *entry)
{
	uint64_t pages = entry->pages ? entry->pages : entry->compat;
	uint64_t flags = entry->flags, size, offset = runs->offset, here = offset;
	size_t room = runs->room;

	if (entry->in_parent)
		flags |= PN_PARENT;
	else if (!entry->has_flags)
		flags = PN_PRESENT;
	if (entry->start < runs->last || entry->start % runs->page ||
	    pages > (UINT64_MAX - entry->start) / runs->page)
		return PN_MISPLACED;
	size = pages * runs->page;
	if (flags & PN_PRESENT) {
		uint64_t stored = size, block = (uint64_t)entry->per_block * runs->page;

		if (flags & PN_ALIGNED) {
			if (offset > UINT64_MAX - runs->page)
				return PN_MISPLACED;
			here = offset = (offset + runs->page - 1) / runs->page * runs->page;
		}
		if (entry->compressed) {
			if (block == 0 || block > LARGEST_BLOCK || entry->largest > block ||
			    entry->n_sizes != size / block + (size % block != 0))
				return PN_BAD_BLOCKS;
			stored = entry->stored;
		}
		if (stored > UINT64_MAX - offset)
			return PN_MISPLACED;
		offset += stored;
	}

	bool packed = entry->compressed && flags & PN_PRESENT;
	int sort = sort_of(flags);

	runs->last = entry->start + size;
	if (runs->columns) {
		uint64_t *row = runs->columns + runs->count;

		row[PN_START * room] = entry->start;
		row[PN_END * room] = runs->last;
		row[PN_FLAGS * room] = flags;
		row[PN_OFFSET * room] = here;
		row[PN_BLOCK * room] = packed ? (uint64_t)entry->per_block * runs->page : 0;
		row[PN_SIZES * room] = runs->sizes_before + runs->n_sizes;
		for (int each = 0; each < PN_SORTS; each++)
			row[(PN_BELOW + each) * room] = runs->below[each];
	}
	if (sort >= 0)
		runs->below[sort] += size;
	runs->offset = offset;
	runs->n_sizes += packed ? entry->n_sizes : 0;
	runs->count++;
	return PN_GOOD;
}

int pn_add_entry(struct pn_runs *runs, struct bytes message)
{
	struct entry entry = { 0 };

	runs->problem = read_entry(runs, &entry, message) ? add_run(runs, &entry) : PN_MALFORMED;
	return runs->problem;
}

size_t pn_read_runs(struct pn_runs *runs, const uint8_t *data, size_t length)
{
	size_t at = 0;

	runs->count = runs->n_sizes = 0;
	runs->problem = PN_GOOD;
	while (length - at >= 4) {
		const uint8_t *message = data + at + 4;
		uint32_t size = data[at] | data[at + 1] << 8 | data[at + 2] << 16 |
				(uint32_t)data[at + 3] << 24;

		if (size > length - at - 4 || runs->count == runs->room)
			break;
		if (pn_add_entry(runs, (struct bytes){ message, message + size }))
			break;
		at += 4 + (size_t)size;
	}
	return at;
}

/* The bytes of a sort below an address. */
static uint64_t below(const uint64_t *const columns[], size_t count, int sort, uint64_t address,
		      size_t run)
{
	uint64_t found, end;

	if (count == 0 || columns[PN_START][run] > address)
		return 0;
	found = columns[PN_BELOW + sort][run];
	end = columns[PN_END][run];
	if (sort_of(columns[PN_FLAGS][run]) == sort)
		found += (end < address ? end : address) - columns[PN_START][run];
	return found;
}

/* The last run that begins at the address or before; the first if there is none. */
static size_t run_at(const uint64_t *starts, size_t count, uint64_t address)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (starts[middle] <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low ? low - 1 : 0;
}

void pn_count_between(const uint64_t *const columns[], size_t count, const uint64_t *from,
		      const uint64_t *to, size_t ranges, uint64_t *out)
{
	for (size_t range = 0; range < ranges; range++, out += PN_SORTS) {
		if (to[range] <= from[range]) {
			memset(out, 0, PN_SORTS * sizeof(*out));
			continue;
		}
		size_t first = run_at(columns[PN_START], count, from[range]);
		size_t last = run_at(columns[PN_START], count, to[range]);

		for (int sort = 0; sort < PN_SORTS; sort++)
			out[sort] = below(columns, count, sort, to[range], last) -
				    below(columns, count, sort, from[range], first);
	}
}
