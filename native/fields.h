/*
 * Reads the fields of a protobuf message one after the other. The bytes are not trusted.
 */
#ifndef PN_FIELDS_H
#define PN_FIELDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { VARINT, FIXED64, BYTES, FIXED32 = 5 };

struct bytes {
	const uint8_t *at, *end;
};

struct field {
	uint32_t number;
	unsigned kind;
	uint64_t value; /* of a varint */
	struct bytes inner;
};

/* Bits beyond the 64th are discarded, as in protobuf. */
static inline bool read_varint(struct bytes *in, uint64_t *value)
{
	uint64_t result = 0;

	for (unsigned shift = 0; shift < 70; shift += 7) {
		if (in->at == in->end)
			return false;
		uint8_t byte = *in->at++;
		result |= (uint64_t)(byte & 0x7f) << shift;
		if (byte < 0x80) {
			*value = result;
			return true;
		}
	}
	return false;
}

static inline bool skip(struct bytes *in, uint64_t size)
{
	if (size > (uint64_t)(in->end - in->at))
		return false;
	in->at += size;
	return true;
}

static inline bool read_field(struct bytes *in, struct field *out)
{
	uint64_t tag, size;

	*out = (struct field){ 0 };
	if (!read_varint(in, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
		return false;
	out->number = tag >> 3;
	out->kind = tag & 7;
	switch (out->kind) {
	case VARINT:
		return read_varint(in, &out->value);
	case BYTES:
		if (!read_varint(in, &size))
			return false;
		out->inner.at = in->at;
		if (!skip(in, size))
			return false;
		out->inner.end = in->at;
		return true;
	case FIXED64:
		return skip(in, 8);
	case FIXED32:
		return skip(in, 4);
	default:
		return false;
	}
}

#endif
