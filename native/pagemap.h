/*
 * Reads the entries of a page map one after the other.
 */
#ifndef PN_PAGEMAP_H
#define PN_PAGEMAP_H

#include "fields.h"

struct pn_runs;

/* Adds the run of an entry to the totals, and to the columns if there are any. Returns runs->problem. */
int pn_add_entry(struct pn_runs *runs, struct bytes message);

#endif
