// SPDX-License-Identifier: BSD-2-Clause
//
// Lets `xl create -n` run where there is no Xen: stands in for the few calls to the hypervisor and
// to xenstore that reading a configuration makes. A machine of 8 CPUs in 2 NUMA nodes.
//
//   aarch64-linux-gnu-gcc -shared -fPIC -o shim.so shim.c

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CPUS = 8, NODES = 2, CREDIT = 5 };

struct topology { uint32_t core, socket, node; };
struct memory { uint64_t size, free; };
struct physinfo { uint32_t threads, cores, cpus, last_cpu, nodes, khz, rest[16]; };

static int handle;

void *xc_interface_open(void *logger, void *dombuild, unsigned flags) { return &handle; }
int xc_interface_close(void *xch) { return 0; }
void *xs_open(unsigned long flags) { return &handle; }
void xs_close(void *xsh) { }
void xs_daemon_destroy_postfork(void *xsh) { }
char **xs_directory(void *xsh, unsigned t, const char *path, unsigned *n)
{ *n = 0; errno = ENOENT; return NULL; }
void *xs_read(void *xsh, unsigned t, const char *path, unsigned *n) { errno = ENOENT; return NULL; }

int xc_get_max_cpus(void *xch) { return CPUS; }
int xc_get_online_cpus(void *xch) { return CPUS; }
int xc_get_max_nodes(void *xch) { return NODES; }
int xc_sharing_freed_pages(void *xch) { return 0; }
int xc_sharing_used_frames(void *xch) { return 0; }
int xc_sched_id(void *xch, int *id) { *id = CREDIT; return 0; }
int xc_version(void *xch, int command, void *answer) { return (4 << 16) | 20; }

static char *text(const char *from) { return strdup(from); }
char *xc_xenver_extraversion(void *xch) { return text(".3"); }
char *xc_xenver_capabilities(void *xch) { return text("xen-3.0-aarch64 "); }
char *xc_xenver_changeset(void *xch) { return text(""); }
char *xc_xenver_commandline(void *xch) { return text(""); }
char *xc_xenver_buildid(void *xch) { return text(""); }

int xc_physinfo(void *xch, struct physinfo *info)
{
    memset(info, 0, 80);
    info->threads = 1;
    info->cores = info->cpus = CPUS;
    info->last_cpu = CPUS - 1;
    info->nodes = NODES;
    info->khz = 1000000;
    return 0;
}

int xc_cputopoinfo(void *xch, unsigned *most, struct topology *cpus)
{
    if (cpus)
        for (unsigned i = 0; i < *most && i < CPUS; i++)
            cpus[i] = (struct topology){ i, 0, i / (CPUS / NODES) };
    *most = CPUS;
    return 0;
}

int xc_numainfo(void *xch, unsigned *most, struct memory *nodes, uint32_t *distances)
{
    if (nodes)
        for (unsigned i = 0; i < *most && i < NODES; i++)
            nodes[i] = (struct memory){ 1ull << 30, 1ull << 29 };
    if (distances)
        for (unsigned i = 0; i < NODES * NODES; i++)
            distances[i] = i % (NODES + 1) ? 20 : 10;
    *most = NODES;
    return 0;
}
