/* CRIU's feature cache, shared by the workers of a fork server (feature_cache.c). */
#ifndef PN_FEATURE_CACHE_H
#define PN_FEATURE_CACHE_H

/* Called in the fork server before it forks a worker. */
__attribute__((visibility("hidden"))) void pn_share_feature_cache(void);

#endif
