/* Threads of a team on processors of their own.

   A system may leave two threads on one processor while another one idles, for tens of milliseconds,
   on some machines for seconds: at the end of every loop they wait for one another for whole turns
   of the scheduler, and a call takes twice to two hundred times as long. So it is looked at, every
   few milliseconds: a thread that is where another one is goes to where none is, and may go anywhere
   again after that. THREADS is how many a team has. */

struct moment { long s, ns; };
int clock_gettime(int, struct moment *);
int sched_getcpu(void);
int sched_getaffinity(int, unsigned long, void *);
int sched_setaffinity(int, unsigned long, const void *);
int omp_get_thread_num(void);

enum { WORDS = 64, BITS = 64, OFTEN_NS = 4000000 };

static long now(void) {
  struct moment t;
  clock_gettime(1, &t);
  return t.s * 1000000000 + t.ns;
}

/* Moves the calling thread off the processors that `taken` names; 0 where it may go nowhere else. */
static int moved(const int *taken) {
  unsigned long all[WORDS] = {0}, rest[WORDS], any = 0;
  if (sched_getaffinity(0, sizeof all, all)) return 0;
  for (int i = 0; i < WORDS; i++) rest[i] = all[i];
  for (int j = 0; j < THREADS; j++)
    if (taken[j] >= 0 && taken[j] < WORDS * BITS) rest[taken[j] / BITS] &= ~(1ul << taken[j] % BITS);
  for (int i = 0; i < WORDS; i++) any |= rest[i];
  if (!any || sched_setaffinity(0, sizeof rest, rest)) return 0;
  sched_setaffinity(0, sizeof all, all);
  return 1;
}

/* How many threads were moved. */
int whet_spread(void) {
  static _Thread_local long next; /* each thread that calls has a team of its own */
  if (THREADS < 2 || now() < next) return 0;
  int at[THREADS], count = 0;
  for (int j = 0; j < THREADS; j++) at[j] = -1;
#pragma omp parallel num_threads(THREADS) reduction(+ : count)
  {
    int me = omp_get_thread_num(), twice = 0;
    at[me] = sched_getcpu();
#pragma omp barrier
    for (int j = 0; j < me; j++) twice |= at[j] == at[me];
    if (twice && at[me] >= 0) count += moved(at);
  }
  next = now() + OFTEN_NS;
  return count;
}
