/* What this machine can do at most: multiply-adds from registers, reads and copies from each level
 * of memory. Built by peaks.py with -DVECTOR=<bytes of a vector> -DREGISTERS=<accumulators>.
 *
 * No header is included, so that it compiles in a blink: the few functions it needs stand here.
 *
 *     peaks SECONDS flops  DTYPE   THREADS        operations a second
 *     peaks SECONDS read   BYTES   THREADS        bytes a second, BYTES being those of all threads
 *     peaks SECONDS copy   BYTES   THREADS        bytes read and written a second
 *
 * Any number of triples may follow SECONDS, which is spent on each; the best trial counts, because
 * a limit is what the machine reaches when nothing disturbs it.
 */
int printf(const char *, ...);
double atof(const char *);
long atol(const char *);
int strcmp(const char *, const char *);
void *aligned_alloc(unsigned long, unsigned long);
void free(void *);
int madvise(void *, unsigned long, int);
double omp_get_wtime(void);
int omp_get_thread_num(void);

typedef float f32 __attribute__((vector_size(VECTOR)));
typedef double f64 __attribute__((vector_size(VECTOR)));
enum { HUGE_PAGE = 1 << 21, MADV_HUGEPAGE = 14 };

/* Says that register x is read and written here, so that no loop is folded away. */
#if defined(__AVX512F__)
#define KEEP(x) __asm__ volatile("" : "+v"(x))
#elif defined(__x86_64__)
#define KEEP(x) __asm__ volatile("" : "+x"(x))
#elif defined(__aarch64__)
#define KEEP(x) __asm__ volatile("" : "+w"(x))
#else
#define KEEP(x) __asm__ volatile("" : "+m"(x))
#endif

/* `steps` rounds of one multiply-add on each of REGISTERS independent accumulators: enough of them
 * to cover the latency, few enough to stay in registers. */
#define FLOPS(T)                                                                                   \
    static void flops_##T(long steps) {                                                            \
        T a[REGISTERS], b = {0}, c = {0};                                                          \
        b += 0.999f, c += 0.001f;                                                                  \
        _Pragma("GCC unroll 32") for (int i = 0; i < REGISTERS; i++) a[i] = b;                     \
        for (long k = 0; k < steps; k++) {                                                         \
            _Pragma("GCC unroll 32") for (int i = 0; i < REGISTERS; i++) {                         \
                a[i] = a[i] * b + c;                                                               \
                KEEP(a[i]);                                                                        \
            }                                                                                      \
        }                                                                                          \
    }
FLOPS(f32)
FLOPS(f64)

/* bfloat16 dot products into float32: no vector extension says it, so the instruction is named. */
static void flops_bf16(long steps) {
#if defined(__AVX512BF16__) && VECTOR == 64
    f32 a[REGISTERS], b = {0};
    _Pragma("GCC unroll 32") for (int i = 0; i < REGISTERS; i++) a[i] = b;
    for (long k = 0; k < steps; k++) {
        _Pragma("GCC unroll 32") for (int i = 0; i < REGISTERS; i++)
            __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(a[i]) : "v"(b));
    }
#else
    (void)steps;
#endif
}

/* Sums `bytes` from p, four vectors at a time into four sums. */
static void read_all(const f32 *p, long bytes) {
    f32 a = {0}, b = {0}, c = {0}, d = {0};
    for (long i = 0, n = bytes / VECTOR; i + 4 <= n; i += 4) {
        a += p[i], b += p[i + 1], c += p[i + 2], d += p[i + 3];
        KEEP(a);
        KEEP(b);
        KEEP(c);
        KEEP(d);
    }
}

static void copy_all(f32 *to, const f32 *from, long bytes) {
    for (long i = 0, n = bytes / VECTOR; i < n; i++) to[i] = from[i];
    __asm__ volatile("" ::"r"(to) : "memory");
}

enum Kind { F32, F64, BF16, READ, COPY };
typedef struct {
    enum Kind kind;
    int threads;
    long bytes;        /* of one thread */
    char *from, *to;
} Job;

/* Seconds that `steps` repetitions take when all threads do them at once. */
static double once(Job job, long steps) {
    double start = omp_get_wtime();
#pragma omp parallel num_threads(job.threads)
    {
        long mine = omp_get_thread_num() * job.bytes;
        switch (job.kind) {
        case F32: flops_f32(steps); break;
        case F64: flops_f64(steps); break;
        case BF16: flops_bf16(steps); break;
        case READ:
            for (long k = 0; k < steps; k++) read_all((f32 *)(job.from + mine), job.bytes);
            break;
        case COPY:
            for (long k = 0; k < steps; k++)
                copy_all((f32 *)(job.to + mine), (f32 *)(job.from + mine), job.bytes);
        }
    }
    return omp_get_wtime() - start;
}

/* The least seconds of one step. Trials are short, because a busy machine leaves all threads alone
 * only for moments, but long enough to hide the start of a parallel region. One thread finds the
 * length, for no other keeps it waiting. */
static double best(Job job, double seconds) {
    long steps = 1;
    double least = 1e30, end = omp_get_wtime() + seconds;
    Job alone = job;
    alone.threads = 1;
    while (once(alone, steps) < seconds / 100 || once(alone, steps) < seconds / 100) steps *= 2;
    for (int trial = 0; trial < 5 || omp_get_wtime() < end; trial++) {
        double took = once(job, steps);
        if (took / steps < least) least = took / steps;
    }
    return least;
}

static char *pages(long bytes) {
    long whole = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *p = aligned_alloc(HUGE_PAGE, whole);
    if (p) madvise(p, whole, MADV_HUGEPAGE);
    return p;
}

int main(int argc, char **argv) {
    double seconds = atof(argv[1]);
    for (int i = 2; i + 2 < argc; i += 3) {
        const char *what = argv[i], *of = argv[i + 1];
        Job job = {.threads = (int)atol(argv[i + 2])};
        double work;
        if (!strcmp(what, "flops")) {
            int wide = !strcmp(of, "float64"), half = !strcmp(of, "bfloat16");
            job.kind = half ? BF16 : wide ? F64 : F32;
            work = 2.0 * REGISTERS * VECTOR / (half ? 2 : wide ? 8 : 4) * job.threads;
        } else {
            long all = atol(of);
            job.kind = !strcmp(what, "copy") ? COPY : READ;
            job.bytes = all / job.threads / 4096 * 4096;
            job.from = pages(all), job.to = job.kind == COPY ? pages(all) : job.from;
            if (!job.from || !job.to) return 2;
            f32 one = {0};
            one += 1.0f;
#pragma omp parallel num_threads(job.threads)
            for (long k = omp_get_thread_num() * job.bytes, n = k + job.bytes; k < n; k += VECTOR)
                *(f32 *)(job.from + k) = *(f32 *)(job.to + k) = one;
            work = (double)job.bytes * job.threads * (job.kind == COPY ? 2 : 1);
        }
        printf("%.6e\n", work / best(job, seconds));
        if (job.to != job.from) free(job.to);
        free(job.from);
    }
    return 0;
}
