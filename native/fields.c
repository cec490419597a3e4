/*
 * The numbers and byte strings of a protobuf message, many at once, for Python.
 */
#include "fields.h"

#include <errno.h>

#include "libcriu_types.h"
#include "pycriu_native.h"

int pn_read_fields(const uint8_t *data, size_t length, size_t *at, struct pn_value *out, size_t capacity)
{
	struct bytes in = { data + *at, data + length };
	size_t count = 0;

	while (in.at < in.end && count < capacity) {
		struct field field;

		if (!read_field(&in, &field))
			return count ? (int)count : -EINVAL; /* the next call reports the error */
		*at = (size_t)(in.at - data);
		if (field.kind != VARINT && field.kind != BYTES)
			continue;
		out[count].field = field.number;
		out[count].is_bytes = field.kind == BYTES;
		out[count].number = field.kind == BYTES ? (uint64_t)(field.inner.end - field.inner.at) : field.value;
		out[count++].start = field.kind == BYTES ? (size_t)(field.inner.at - data) : 0;
	}
	return (int)count;
}
