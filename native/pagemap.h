/*
 * The entries of a page map, one after the other.
 */
#ifndef PN_PAGEMAP_H
#define PN_PAGEMAP_H

#include "fields.h"

struct pn_runs;

/* Add the run of an entry to the totals, and to the columns where there are some: runs->problem. */
int pn_add_entry(struct pn_runs *runs, struct bytes message);

#endif
