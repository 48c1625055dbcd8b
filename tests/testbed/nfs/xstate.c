/* Lets User-Mode Linux 6.1 run on processors with a large XSAVE area.
 *
 * UML keeps 832 bytes of floating-point state per task and hands them to
 * PTRACE_SETREGSET. On a processor with AVX-512 or AMX the host wants the
 * whole area, answers EFAULT, and UML dies at its first process. Loaded with
 * LD_PRELOAD, this stands between the two: the whole area of each task is kept
 * here, and UML sees and sets the beginning of it.
 *
 * Making the host's call fail, so that UML falls back to the FXSAVE calls, is
 * shorter, and computes wrong numbers (exp(2) = 1): the upper halves of the
 * registers get lost at every switch of tasks.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REGSET_XSTATE 0x202L /* NT_X86_XSTATE */
#define AREA_MAX 16384       /* more than AMX needs */
#define TASKS 4096           /* UML reuses its buffers, so that this is plenty */

#define HEADER 512 /* where the XSAVE header lies; it begins with the mask of parts in use */
#define X87_SSE_AVX 7ULL /* the parts that UML's 832 bytes hold */

struct area {
    const void *task; /* UML's own buffer tells its tasks apart */
    size_t size;      /* 0: nothing kept yet */
};

static struct area areas[TASKS];
static unsigned char kept[TASKS][AREA_MAX] __attribute__((aligned(64)));
static unsigned char current[AREA_MAX] __attribute__((aligned(64)));

/* The slot of a task; -1 if it has none, and none may be or can be made. */
static int slot_of(const void *task, int make)
{
    unsigned start = (unsigned)((uintptr_t)task >> 4) * 2654435761u % TASKS;
    for (unsigned i = 0; i < TASKS; i++) {
        unsigned at = (start + i) % TASKS;
        if (areas[at].task == task)
            return (int)at;
        if (!areas[at].task) {
            if (!make)
                return -1;
            areas[at].task = task;
            return (int)at;
        }
    }
    return -1;
}

static uint64_t mask_at(const unsigned char *area)
{
    uint64_t mask;
    memcpy(&mask, area + HEADER, sizeof mask);
    return mask;
}

static long exchange(enum __ptrace_request request, long pid, struct iovec *uml)
{
    struct iovec whole = {current, AREA_MAX};
    if (syscall(SYS_ptrace, PTRACE_GETREGSET, (int)pid, REGSET_XSTATE, &whole))
        return -1;
    size_t size = whole.iov_len;
    size_t seen = uml->iov_len < size ? uml->iov_len : size;
    int slot = slot_of(uml->iov_base, request == PTRACE_GETREGSET);

    if (request == PTRACE_GETREGSET) {
        memcpy(uml->iov_base, current, seen);
        uml->iov_len = seen;
        if (slot >= 0) {
            memcpy(kept[slot], current, size);
            areas[slot].size = size;
        }
        return 0;
    }

    uint64_t beyond = 0; /* parts in use that UML cannot see */
    if (slot >= 0 && areas[slot].size == size) {
        memcpy(current + seen, kept[slot] + seen, size - seen);
        beyond = mask_at(kept[slot]) & ~X87_SSE_AVX;
    }
    int known = slot >= 0 && areas[slot].size == size;
    memcpy(current, uml->iov_base, seen);
    if (known) {
        uint64_t mask = (mask_at(current) & X87_SSE_AVX) | beyond;
        memcpy(current + HEADER, &mask, sizeof mask);
    }
    whole.iov_base = current;
    whole.iov_len = size;
    return syscall(SYS_ptrace, request, (int)pid, REGSET_XSTATE, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list list;
    va_start(list, request);
    long pid = va_arg(list, long);
    void *addr = va_arg(list, void *);
    void *data = va_arg(list, void *);
    va_end(list);

    if ((request == PTRACE_GETREGSET || request == PTRACE_SETREGSET) && (long)addr == REGSET_XSTATE)
        return exchange(request, pid, data);
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
        /* The system call stores the word; glibc's function returns it. */
        long word;
        if (syscall(SYS_ptrace, request, (int)pid, addr, &word))
            return -1;
        errno = 0;
        return word;
    }
    return syscall(SYS_ptrace, request, (int)pid, addr, data);
}
