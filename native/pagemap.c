/*
 * The runs of a page map, read from the bytes of its image into columns of numbers.
 *
 * A large process has hundreds of thousands of runs, each a protobuf message of a dozen bytes. The
 * bytes are not trusted. Everything that protobuf accepts is accepted, except groups, which CRIU's
 * messages do not use (fields.h); protobuf's error message explains a refused one.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "libcriu_types.h"
#include "fields.h"
#include "pagemap.h"
#include "pycriu_native.h"

enum { MAX_BLOCK = 4 << 20 }; /* bytes of memory */

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
	if (runs->sizes && runs->n_sizes + entry->n_sizes == runs->sizes_capacity)
		return false;
	if (runs->sizes)
		runs->sizes[runs->n_sizes + entry->n_sizes] = size;
	entry->n_sizes++;
	entry->stored += size;
	if (size > entry->largest)
		entry->largest = size;
	return true;
}

/* pagemap_blocks: 1 the size of each block, 2 the sum of these, 3 pages in a block. */
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

/* pagemap_entry: 1 address, 2 pages (32 bits), 3 in a parent, 4 flags, 5 pages,
 * 6 blocks. As in any message, the last value of a field applies, and the parts of blocks are merged. */
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

/* Where the bytes of a run are. Stored pages are never loaded lazily, even with the lazy flag. */
static int location_of(uint64_t flags)
{
	if (flags & PN_PRESENT)
		return PN_STORED;
	return flags & PN_PARENT ? PN_IN_PARENT : flags & PN_LAZY ? PN_LOADED_LAZILY : -1;
}

static int add_run(struct pn_runs *runs, struct entry *entry)
{
	uint64_t pages = entry->pages ? entry->pages : entry->compat;
	uint64_t flags = entry->flags, size, offset = runs->offset, stored_at = offset;
	size_t capacity = runs->capacity;

	if (entry->in_parent)
		flags |= PN_PARENT;
	else if (!entry->has_flags)
		flags = PN_PRESENT;
	if (entry->start < runs->end || entry->start % runs->page ||
	    pages > (UINT64_MAX - entry->start) / runs->page)
		return PN_MISPLACED;
	size = pages * runs->page;
	if (flags & PN_PRESENT) {
		uint64_t stored = size, block = (uint64_t)entry->per_block * runs->page;

		if (flags & PN_ALIGNED) {
			if (offset > UINT64_MAX - runs->page)
				return PN_MISPLACED;
			stored_at = offset = (offset + runs->page - 1) / runs->page * runs->page;
		}
		if (entry->compressed) {
			if (block == 0 || block > MAX_BLOCK || entry->largest > block ||
			    entry->n_sizes != size / block + (size % block != 0))
				return PN_BAD_BLOCKS;
			stored = entry->stored;
		}
		if (stored > UINT64_MAX - offset)
			return PN_MISPLACED;
		offset += stored;
	}

	bool compressed = entry->compressed && flags & PN_PRESENT;
	int location = location_of(flags);

	runs->end = entry->start + size;
	if (runs->columns) {
		uint64_t *row = runs->columns + runs->count;

		row[PN_START * capacity] = entry->start;
		row[PN_END * capacity] = runs->end;
		row[PN_FLAGS * capacity] = flags;
		row[PN_OFFSET * capacity] = stored_at;
		row[PN_BLOCK * capacity] = compressed ? (uint64_t)entry->per_block * runs->page : 0;
		row[PN_SIZES * capacity] = runs->sizes_before + runs->n_sizes;
		for (int each = 0; each < PN_LOCATIONS; each++)
			row[(PN_CUMULATIVE + each) * capacity] = runs->totals[each];
	}
	if (location >= 0)
		runs->totals[location] += size;
	runs->offset = offset;
	runs->n_sizes += compressed ? entry->n_sizes : 0;
	runs->count++;
	return PN_VALID;
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
	runs->problem = PN_VALID;
	while (length - at >= 4) {
		const uint8_t *message = data + at + 4;
		uint32_t size = data[at] | data[at + 1] << 8 | data[at + 2] << 16 |
				(uint32_t)data[at + 3] << 24;

		if (size > length - at - 4 || runs->count == runs->capacity)
			break;
		if (pn_add_entry(runs, (struct bytes){ message, message + size }))
			break;
		at += 4 + (size_t)size;
	}
	return at;
}

/* The bytes at a location before an address. */
static uint64_t bytes_before(const uint64_t *const columns[], size_t count, int location, uint64_t address,
		      size_t run)
{
	uint64_t result, end;

	if (count == 0 || columns[PN_START][run] > address)
		return 0;
	result = columns[PN_CUMULATIVE + location][run];
	end = columns[PN_END][run];
	if (location_of(columns[PN_FLAGS][run]) == location)
		result += (end < address ? end : address) - columns[PN_START][run];
	return result;
}

/* The last run that begins at the address or before it; the first if there is none. */
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

void pn_count_in_ranges(const uint64_t *const columns[], size_t count, const uint64_t *from,
		      const uint64_t *to, size_t ranges, uint64_t *out)
{
	for (size_t range = 0; range < ranges; range++, out += PN_LOCATIONS) {
		if (to[range] <= from[range]) {
			memset(out, 0, PN_LOCATIONS * sizeof(*out));
			continue;
		}
		size_t first = run_at(columns[PN_START], count, from[range]);
		size_t last = run_at(columns[PN_START], count, to[range]);

		for (int location = 0; location < PN_LOCATIONS; location++)
			out[location] = bytes_before(columns, count, location, to[range], last) -
				    bytes_before(columns, count, location, from[range], first);
	}
}
