/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of the stub's libcuda: its objects, and what its files offer each other. cuda_api.def lists the API; for
 * each of its lines exports.c makes the exported function, which calls stub_<name> from one of the files here.
 *
 *   driver.c, device.c                 start, fork, errors; device facts
 *   context.c, settings.c, green.c     contexts and which is current; what is set for them; green contexts
 *   memory.c, managed.c, hostmemory.c  allocations: on the device, managed, pinned; arena.c: their addresses;
 *                                      blocks.c: of small ones
 *   pools.c, poolmemory.c              pools, and what is allocated from them in stream order (pools.h)
 *   virtual.c, multicast.c             the virtual memory API (virtual.h)
 *   arrays.c                           arrays
 *   sharing.c, holding.c               IPC and external memory; memory that several processes hold
 *   module.c, ptx.c, library.c, link.c modules and functions, images, libraries (module.h); the linker API
 *   copies.c, batches.c, fills.c       memcpy, its newest and oldest calls, memset
 *   launch.c                           kernel launches
 *   graph.c, graphnodes.c, graphexec.c graphs, their nodes, running them; capture.c: stream capture
 *   queue.c, engine.c                  streams' work, a process's time on the card
 *   stream.c, events.c                 streams and events
 *   handles.c                          the records behind handles, which come again (handles.h)
 *   exports.c, faults.c                the exported functions; failure injection
 *
 * work.h: copies, fills and nodes, for those who make, capture and run them.
 */
#ifndef VGPU_STUB_DRIVER_H
#define VGPU_STUB_DRIVER_H

#include "abi/cuda.h"
#include "cards.h"
#include "handles.h"

#include <pthread.h>
#include <stdbool.h>

#define STUB_CUDA_VERSION_FALLBACK 12080
#define QUEUE_DEPTH     1024 /* launches that a stream takes before the caller waits, as on the real driver */
#define PITCH_ALIGNMENT 512
#define THREADS_PER_MULTIPROCESSOR 2048

/* The functions behind the exported ones. */
#define STUB_DECLARE(symbol, params)                       CUresult stub_##symbol params;
#define CUDA_API(symbol, base, since, params, args)        STUB_DECLARE(symbol, params)
#define CUDA_API_STREAM(symbol, base, since, params, args) STUB_DECLARE(symbol, params)
#define CUDA_API_PTSZ(symbol, base, since, params, args)                                                               \
    STUB_DECLARE(symbol, params) STUB_DECLARE(symbol##_ptsz, params)
#define CUDA_API_PTDS(symbol, base, since, params, args) STUB_DECLARE(symbol, params)
#include "abi/cuda_api.def"
#undef CUDA_API
#undef CUDA_API_STREAM
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS

#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        CUresult try_result_ = (expression);                                                                           \
        if (try_result_ != CUDA_SUCCESS)                                                                               \
            return try_result_;                                                                                        \
    } while (0)
#define REQUIRE(condition, otherwise)                                                                                  \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return (otherwise);                                                                                        \
    } while (0)

/* ---- Devices ---- */

struct engine {
    bool held;
    uint64_t slice_start_ns;
    uint64_t at_ns; /* how far our work on the engine has come */
};

struct executor; /* queue.c */

struct device {
    struct card card;
    int ordinal;
    bool joined;
    struct engine engine;
    struct executor *executor;
    CUcontext primary;
    unsigned primary_flags;
    CUmemoryPool default_pool;
    CUmemoryPool current_pool;
    CUmemoryPool graph_pool;
};

struct driver {
    bool ready;
    int device_count;
    struct device devices[CARDS_MAX];
    pthread_mutex_t lock; /* devices, contexts, modules, pools: everything but memory and queues */
};

extern struct driver driver;

/* The device of an ordinal, or why not. */
CUresult device_of(CUdevice ordinal, struct device **device);
/* Takes a slot on the card and starts the executor: from then on this process is on the card. */
CUresult device_join(struct device *device);

/* ---- Contexts ---- */

/* What a context has without asking. */
#define HEAP_BYTES  (8 << 20)
#define FIFO_BYTES  (1 << 20)
#define STACK_BYTES 1024 /* of each thread */

struct CUctx_st {
    struct device *device;
    unsigned flags;
    unsigned uses; /* of the primary context: retains */
    bool primary;
    unsigned long long id;
    CUstream legacy; /* the default stream */
    CUstream streams;
    CUevent events;
    struct allocation *allocations;
    struct block *blocks; /* of small ones */
    CUmodule modules;
    size_t limits[16];
    uint64_t heap_bytes[4]; /* by limit: taken for it on top of the context's own */
    uint64_t
        thread_bytes; /* of local memory, for each thread that the card can run; what a new context has is its own */
    struct CUctx_st *next;
};

/* The calling thread's current context, or why not. */
CUresult current_context(CUcontext *context);
/* Its stream for a handle of the API: 0 and CU_STREAM_LEGACY, CU_STREAM_PER_THREAD, or a stream. */
CUresult resolve_stream(CUstream handle, CUstream *stream);
void context_forget_all(void); /* in a fork's child */

/* Threads of the context need this much local memory each: it has that from now on. */
CUresult context_local(CUcontext context, uint64_t thread_bytes);

/* ---- Memory that several processes hold (holding.c) ---- */

struct holding {
    struct device *device;
    int entry; /* -1: it is nobody's but ours, or of no card */
};

/* Memory that this process is charged for, from now on with a file behind it: entry is -1 if there are too many. */
struct holding holding_share(struct device *device, int file, uint64_t bytes);
/* Memory that was shared, by its file. */
struct holding holding_open(int file);
void holding_close(struct holding holding);
/* A descriptor for others, which keeps the memory as long as it is open anywhere; -1 with errno. */
int holding_descriptor(int file);
/* Frees what descriptors kept that are closed now. */
void holdings_settle(void);
void holdings_forget_all(void);

/* ---- Address space and allocations (arena.c, memory.c) ---- */

enum allocation_kind {
    ALLOCATION_DEVICE,
    ALLOCATION_MANAGED,
    ALLOCATION_HOST,
    ALLOCATION_ASYNC,       /* from a pool */
    ALLOCATION_ARRAY,       /* behind a CUarray */
    ALLOCATION_RESERVATION, /* address range of the VMM */
    ALLOCATION_IMPORTED,    /* memory of another process or driver: charged there */
    ALLOCATION_GRAPH,       /* of a graph's memory node */
    ALLOCATION_BLOCK        /* the addresses of a block of small ones */
};

struct allocation {
    CUdeviceptr base;
    size_t size;
    uint64_t charged;          /* bytes taken from a card for it... */
    struct device *charged_on; /* ...its device's, but for managed memory that lies elsewhere */
    enum allocation_kind kind;
    bool touched; /* its pages may hold something */
    bool freed;   /* a stream-ordered free is on its way */
    bool mapped_file;
    int shared_fd;          /* the memory file behind it once it was exported, else -1 */
    struct holding holding; /* of memory that was exported or imported: charged there */
    unsigned flags;
    unsigned long long id;
    struct device *device;
    CUcontext context;
    CUmemoryPool pool;
    struct mapping *mappings; /* of a reservation */
    void *array;              /* that it is behind */
    struct block *block;      /* that it lies in */
    struct allocation *next, *previous;
    int arena;
};

enum { ARENA_DEVICE, ARENA_MANAGED, ARENA_HOST, ARENA_COUNT };

/* Address space for size bytes, aligned to 512 bytes or, with whole, to the power of two above size. */
CUdeviceptr arena_take(int arena, size_t size, bool whole, struct allocation *owner);
/* Gives it back; its pages are dropped if they were touched. */
void arena_give(struct allocation *owner);
/* Its bytes are no longer needed. */
void arena_drop_pages(struct allocation *owner);
/* The allocation that holds this address, NULL if none does. */
struct allocation *arena_find(CUdeviceptr address);
/* Where the bytes behind a device address lie in this process. */
void *arena_bytes(CUdeviceptr address);
void arena_forget_all(void);

/* Small allocations in blocks (blocks.c), under memory_lock: does a device put one of so many bytes into one? */
bool blocks_have(const struct device *device, size_t bytes);
/* Finds a place in a block of its context; false: there is none. */
bool block_put(struct allocation *record);
/* One more, whose bytes are charged; false: no memory or addresses. */
bool block_add(CUcontext context);
/* What lies there. */
struct allocation *block_part(const struct block *block, CUdeviceptr address);
/* Returns the bytes of the card that are given back with it. */
uint64_t block_take_out(struct allocation *record);

extern pthread_mutex_t memory_lock; /* arenas, allocations and their lists */

/* Allocates address space and charges the card (bytes may differ from size). Fills in *result. */
CUresult allocation_make(enum allocation_kind kind, CUcontext context, size_t size, uint64_t charge,
                         struct allocation **result);
void allocation_drop(struct allocation *allocation);
/* Charges the card; before it gives up, it takes back what our pools keep for nobody. */
bool device_charge(struct device *device, uint64_t bytes);
void device_credit(struct device *device, uint64_t bytes);
/*
 * The bytes behind [address, address + size): inside one allocation, or, for an address the driver does not know,
 * plain host memory. write marks the pages as used.
 */
CUresult memory_bytes(CUdeviceptr address, size_t size, bool write, void **bytes);
/* Like it, for an address that has to be device memory. */
CUresult device_bytes(CUdeviceptr address, size_t size, bool write, void **bytes);

/* ---- Queues, engine (queue.c, engine.c) ---- */

/* OP_RUN moves bytes and is done then, or after its time on the engine; OP_LINK after its time on the link. */
enum op_kind { OP_KERNEL, OP_RECORD, OP_WAIT, OP_RUN, OP_LINK, OP_HOST };

struct op {
    enum op_kind kind;
    uint64_t sequence; /* order of submission on the device */
    uint64_t submitted_ns;
    uint64_t duration_ns; /* OP_KERNEL, OP_RUN, OP_LINK */
    union {
        struct {
            CUevent event;
            uint64_t generation;
        } event; /* OP_RECORD, OP_WAIT */
        struct {
            void (*function)(void *data);
            void *data;
        } run; /* OP_RUN, OP_LINK: of the driver, short; OP_HOST: of the application, may take its time */
    };
};

struct CUstream_st {
    CUcontext context;
    unsigned flags;
    int priority;
    bool legacy;
    unsigned long long id;
    struct op *ring; /* QUEUE_DEPTH */
    uint64_t submitted, completed;
    uint64_t time_ns; /* when its last op ended */
    CUgraph capture;  /* the graph being captured, or NULL */
    bool capture_origin;
    bool capture_borrowed; /* the graph is the application's own */
    bool capture_failed;
    unsigned long long capture_id;
    CUgraphNode *capture_deps; /* what the next node comes behind */
    size_t capture_dep_count;
    CUstream next;                         /* of the context */
    CUstream next_active, previous_active; /* with work */
    bool active;
    CUstreamAttrValue attributes[16];
};

struct CUevent_st {
    CUcontext context;
    unsigned flags;
    unsigned references;
    uint64_t recorded, completed; /* generations */
    uint64_t time_ns;
    CUgraph capture; /* recorded in this capture, behind this node */
    unsigned long long capture_id;
    CUgraphNode capture_node;
    bool gone;               /* destroyed: the handle comes again when no work refers to it any more */
    CUevent next, *previous; /* of the context; what points to it */
};

CUresult executor_start(struct device *device);
void executor_forget(struct device *device);
/* Between the two, a context's streams stay the ones that it has. */
void queue_hold(CUcontext context);
void queue_let_go(CUcontext context);
CUstream queue_stream_make(CUcontext context, unsigned flags, int priority);
void queue_stream_free(CUstream stream); /* when its work is done */
/* Puts work on a stream; waits while the stream is full. */
void queue_submit(CUstream stream, struct op op);
void queue_wait_stream(CUstream stream);
void queue_wait_context(CUcontext context);
void queue_wait_event(CUevent event, uint64_t generation);
bool queue_stream_idle(CUstream stream);
void event_release(CUevent event);
void events_end(CUcontext context); /* with their context */
void events_forget_all(void);

/* Runs for duration_ns on the card's engine, not before ready_ns; returns the engine's time at its end. */
uint64_t engine_run(struct device *device, uint64_t ready_ns, uint64_t duration_ns);
/* Lets others have it. */
void engine_release(struct device *device);

/* ---- Modules and launches ---- */

enum handle_tag { TAG_FUNCTION = 0x46756e63, TAG_KERNEL = 0x4b65726e };

/* Charge a module for more than it was loaded with. */
CUresult module_charge(CUmodule module, uint64_t bytes);

struct CUfunc_st {
    enum handle_tag tag;
    CUmodule module;
    struct device *device;
    char *name;
    bool spins;   /* runs for the nanoseconds in its first parameter */
    bool instant; /* takes no time */
    bool loaded;  /* was launched before: lazy_bytes are charged */
    unsigned attributes[CU_FUNC_ATTRIBUTE_MAX];
    int block[3]; /* of the legacy launch */
    unsigned shared_bytes;
    unsigned char params[4096];
    struct CUfunc_st *next;
};

/* One kernel launch, as launch.c and graphs need it. */
struct kernel {
    CUfunction function;
    unsigned grid[3], block[3];
    unsigned shared_bytes;
    uint64_t duration_ns;
};

/* Checks a launch and works out how long it takes. */
CUresult kernel_prepare(struct kernel *kernel, void **params, void **extra);
CUresult kernel_submit(CUstream stream, const struct kernel *kernel);
void modules_unload_all(CUcontext context);
/* The function that a CUfunction or CUkernel handle stands for. */
CUfunction function_of(const void *handle);

/* ---- Virtual memory ---- */

/* Is all of [address, address + size) of a reservation mapped and accessible? Under memory_lock. */
bool reservation_accessible(const struct allocation *reservation, CUdeviceptr address, size_t size);
void memories_forget_all(void); /* in a fork's child */
/* Drops the mappings of a reservation that goes. */
void reservation_clear(struct allocation *reservation);
/* Puts a memory file behind part of an allocation. */
bool bytes_map_file(CUdeviceptr address, size_t size, int fd, uint64_t offset);
int memory_file(uint64_t size);

/* ---- Failure injection ---- */

/* Set when any fault is armed; exported functions ask faults_hit only then. */
extern bool faults_from_environment;

/* $VGPU_STUB_CALLS_ITSELF: some functions call others as a program finds them, as a driver may, and so end in hooks. */
extern bool calls_itself;
void *as_a_program_finds(const char *symbol);
bool faults_armed_on_cards(void);
bool faults_hit(const char *function, CUresult *result);

#endif
