/*
 * libcriu's protobuf messages, by the field names of rpc.proto.
 *
 * The structures differ between releases, so all offsets are taken from the descriptors that the
 * loaded libcriu exports. Memory comes from malloc(), because libcriu and protobuf-c free it with
 * free().
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <protobuf-c/protobuf-c.h>

#include "libcriu_types.h"
#include "pycriu_native.h"

extern const ProtobufCMessageDescriptor criu_opts__descriptor;
extern const ProtobufCMessageDescriptor criu_req__descriptor;
extern const ProtobufCMessageDescriptor criu_resp__descriptor;
extern const ProtobufCMessageDescriptor criu_features__descriptor;

void criu_local_free_opts(criu_opts *opts);

static const ProtobufCMessageDescriptor *descriptor_of(int type)
{
	switch (type) {
	case PN_OPTS:
		return &criu_opts__descriptor;
	case PN_REQUEST:
		return &criu_req__descriptor;
	default:
		return &criu_resp__descriptor;
	}
}

static void *new_message(const ProtobufCMessageDescriptor *descriptor)
{
	void *message = calloc(1, descriptor->sizeof_message);

	if (message)
		descriptor->message_init(message);
	return message;
}

/* libcriu's handle is opaque. Its first member is the message in all releases from 3.17 to 4.3. */
void *pn_opts_message(criu_opts *opts)
{
	ProtobufCMessage *message = *(ProtobufCMessage **)opts;

	return message && message->descriptor == &criu_opts__descriptor ? message : NULL;
}

/* criu_local_free_opts() does not free all fields. It therefore frees an empty message, and
 * protobuf-c frees the full one. */
int pn_free_opts(criu_opts *opts)
{
	void *used = pn_opts_message(opts);
	void *empty = used ? new_message(&criu_opts__descriptor) : NULL;

	if (!empty) {
		criu_local_free_opts(opts);
		return used ? -ENOMEM : -EINVAL;
	}
	*(void **)opts = empty;
	pn_free(used);
	criu_local_free_opts(opts);
	return 0;
}

int pn_load_opts(criu_opts *opts, size_t length, const uint8_t *data)
{
	void *loaded = pn_unpack(PN_OPTS, length, data);

	if (!loaded)
		return -ENOMEM;
	pn_free(*(void **)opts);
	*(void **)opts = loaded;
	return 0;
}

void *pn_new(int type)
{
	return new_message(descriptor_of(type));
}

void *pn_unpack(int type, size_t length, const uint8_t *data)
{
	errno = 0; /* remains 0 if the bytes are not a message; ENOMEM if memory ran out */
	return protobuf_c_message_unpack(descriptor_of(type), NULL, length, data);
}

size_t pn_packed_size(const void *message)
{
	return protobuf_c_message_get_packed_size(message);
}

size_t pn_pack(const void *message, uint8_t *out)
{
	return protobuf_c_message_pack(message, out);
}

void pn_free(void *message)
{
	if (message)
		protobuf_c_message_free_unpacked(message, NULL);
}

int pn_has_field(int type, const char *field)
{
	return protobuf_c_message_descriptor_get_field_by_name(descriptor_of(type), field) != NULL;
}

/* A library refuses a structure larger than the one it was built with: 4.3 added a member. */
size_t pn_features_size(void)
{
	bool newest = protobuf_c_message_descriptor_get_field_by_name(&criu_features__descriptor, "mem_compression");

	return sizeof(struct criu_feature_check) - (newest ? 0 : sizeof(bool));
}

static int width_of(const ProtobufCFieldDescriptor *field)
{
	switch (field->type) {
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return 8;
	default:
		return 4; /* an enum and a protobuf_c_boolean are an int */
	}
}

static int kind_of(const ProtobufCFieldDescriptor *field)
{
	switch (field->type) {
	case PROTOBUF_C_TYPE_STRING:
		return PN_TEXT;
	case PROTOBUF_C_TYPE_MESSAGE:
		return PN_MESSAGE;
	case PROTOBUF_C_TYPE_BOOL:
		return PN_BOOL;
	default:
		return PN_INT;
	}
}

static const ProtobufCFieldDescriptor *find(const ProtobufCMessage *message, const char *name)
{
	return protobuf_c_message_descriptor_get_field_by_name(message->descriptor, name);
}

/* The memory of the next value of a field: in the structure, or a new item of its array. */
static void *place_for(ProtobufCMessage *message, const ProtobufCFieldDescriptor *field, size_t width)
{
	char *base = (char *)message;
	size_t *count = (size_t *)(base + field->quantifier_offset);
	char **items = (char **)(base + field->offset);
	char *grown;

	if (field->label != PROTOBUF_C_LABEL_REPEATED)
		return base + field->offset;
	grown = realloc(*items, (*count + 1) * width);
	if (!grown)
		return NULL;
	*items = grown;
	memset(grown + *count * width, 0, width);
	return grown + (*count)++ * width;
}

int pn_set_int(void *message, const char *name, int64_t value)
{
	const ProtobufCFieldDescriptor *field = find(message, name);
	void *place;
	int kind;

	if (!field)
		return -ENOENT;
	kind = kind_of(field);
	if (kind != PN_INT && kind != PN_BOOL)
		return -EINVAL;
	place = place_for(message, field, width_of(field));
	if (!place)
		return -ENOMEM;
	if (width_of(field) == 8)
		*(int64_t *)place = value;
	else
		*(uint32_t *)place = (uint32_t)value;
	if (field->label == PROTOBUF_C_LABEL_OPTIONAL)
		*(protobuf_c_boolean *)((char *)message + field->quantifier_offset) = 1;
	return 0;
}

int pn_set_text(void *message, const char *name, const char *value)
{
	const ProtobufCFieldDescriptor *field = find(message, name);
	char **place, *copy;

	if (!field)
		return -ENOENT;
	if (kind_of(field) != PN_TEXT)
		return -EINVAL;
	copy = strdup(value);
	if (!copy)
		return -ENOMEM;
	place = place_for(message, field, sizeof(*place));
	if (!place) {
		free(copy);
		return -ENOMEM;
	}
	if (*place != field->default_value)
		free(*place);
	*place = copy;
	return 0;
}

void *pn_add_message(void *message, const char *name)
{
	const ProtobufCFieldDescriptor *field = find(message, name);
	void **place, *sub;

	if (!field || kind_of(field) != PN_MESSAGE)
		return NULL;
	if (field->label != PROTOBUF_C_LABEL_REPEATED) {
		place = (void **)((char *)message + field->offset);
		if (*place)
			return *place;
	}
	sub = new_message(field->descriptor);
	if (!sub)
		return NULL;
	place = place_for(message, field, sizeof(*place));
	if (!place) {
		free(sub);
		return NULL;
	}
	*place = sub;
	return sub;
}

static size_t count_of(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
	const char *base = (const char *)message;

	switch (field->label) {
	case PROTOBUF_C_LABEL_REPEATED:
		return *(const size_t *)(base + field->quantifier_offset);
	case PROTOBUF_C_LABEL_REQUIRED:
		return 1;
	default:
		break;
	}
	if (kind_of(field) == PN_TEXT || kind_of(field) == PN_MESSAGE) {
		const void *value = *(void *const *)(base + field->offset);

		return value && value != field->default_value;
	}
	return *(const protobuf_c_boolean *)(base + field->quantifier_offset) != 0;
}

int pn_next_field(const void *message, unsigned from, struct pn_field *out)
{
	const ProtobufCMessageDescriptor *descriptor = ((const ProtobufCMessage *)message)->descriptor;

	for (unsigned index = from; index < descriptor->n_fields; index++) {
		const ProtobufCFieldDescriptor *field = &descriptor->fields[index];

		out->count = count_of(message, field);
		if (!out->count)
			continue;
		out->index = index;
		out->name = field->name;
		out->type = kind_of(field);
		out->repeated = field->label == PROTOBUF_C_LABEL_REPEATED;
		return 0;
	}
	return -ENOENT;
}

static const void *item_at(const ProtobufCMessage *message, unsigned index, size_t item, size_t width)
{
	const ProtobufCFieldDescriptor *field = &message->descriptor->fields[index];
	const char *place = (const char *)message + field->offset;

	if (field->label == PROTOBUF_C_LABEL_REPEATED)
		return *(const char *const *)place + item * width;
	return place;
}

int64_t pn_get_int(const void *message, unsigned index, size_t item)
{
	const ProtobufCFieldDescriptor *field = &((const ProtobufCMessage *)message)->descriptor->fields[index];
	const void *value = item_at(message, index, item, width_of(field));

	if (width_of(field) == 8)
		return *(const int64_t *)value;
	switch (field->type) {
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		return *(const uint32_t *)value;
	default:
		return *(const int32_t *)value;
	}
}

const char *pn_get_text(const void *message, unsigned index, size_t item)
{
	return *(const char *const *)item_at(message, index, item, sizeof(char *));
}

const void *pn_get_message(const void *message, unsigned index, size_t item)
{
	return *(const void *const *)item_at(message, index, item, sizeof(void *));
}
