/* The way from Python into a native program: tensors in, tensors out, everything checked here.

   call(tensor, …)  -> [tensor, …]   where every argument is exactly what the program is for
                    -> None          else: the caller finds out why, in Python
   quick(tensor, …) -> result        the same behind a table of checks that all must hold: that the
                                     module is what it was, that its parameters are (whet.run.quick)

   No header is needed. What the offsets of `struct program` point at is found out by whoever loads
   the program (whet.run.native), with tensors that it knows. One arena serves one call at a time;
   arenas wait in a list that only holders of the interpreter's lock touch.

   The memory of large outputs is used again once nobody else holds it: fresh pages from the system
   take longer to come by than it takes to fill them. */

typedef int int32_t;
typedef long int64_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef struct tensor *Tensor;
typedef struct object { int64_t count; void *type; } Object;

int aoti_torch_get_dtype(Tensor, int32_t *);
int aoti_torch_get_dim(Tensor, int64_t *);
int aoti_torch_get_sizes(Tensor, int64_t **);
int aoti_torch_get_strides(Tensor, int64_t **);
int aoti_torch_get_data_ptr(Tensor, void **);
int aoti_torch_delete_tensor_object(Tensor);
int aoti_torch_get_storage_size(Tensor, int64_t *);
int aoti_torch__reinterpret_tensor(Tensor, int64_t, const int64_t *, const int64_t *, int64_t,
                                   Tensor *);
int aoti_torch_empty_strided(int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t,
                             Tensor *);
_Bool aoti_torch_grad_mode_is_enabled(void);
const char *torch_exception_get_what_without_backtrace(void);
Object *_Z16THPVariable_WrapRKN2at10TensorBaseE(Tensor);

uint32_t _ZNK2at10TensorBase8_versionEv(Tensor);
_Bool _ZN2at8autocast19is_autocast_enabledEN3c1010DeviceTypeE(signed char);

char *getenv(const char *);
Object *PyDict_GetItem(Object *, Object *);
int64_t PyDict_Size(Object *);
Object *PyList_AsTuple(Object *);
void *PyCapsule_GetPointer(Object *, const char *);
Object *PyList_New(int64_t);
Object *PyList_GetItem(Object *, int64_t);
int PyList_SetItem(Object *, int64_t, Object *);
void *PyEval_SaveThread(void);
void PyEval_RestoreThread(void *);
void PyErr_SetString(Object *, const char *);
int whet_spread(void);
void Py_IncRef(Object *);
void Py_DecRef(Object *);
extern Object *PyExc_RuntimeError, _Py_NoneStruct;

void *mmap(void *, uint64_t, int, int, int, int64_t);
int munmap(void *, uint64_t);
int madvise(void *, uint64_t, int);

enum { ARENAS = 64, HUGE = 2 << 20 };

struct kind {
  int64_t type, rank, large; /* bytes of a large output, else 0 */
  const int64_t *sizes, *strides;
};

struct program {
  int (*entry)(void *const *, void *const *, void *const *, void *);
  void (*close)(void *);
  int64_t inputs, outputs;
  const struct kind *in, *out;
  void *const *constants;
  int64_t constant_handles;
  Tensor *handles; /* what the constants keep alive */
  int64_t arena;   /* bytes */
  void *tensor;    /* Python's type of a plain tensor */
  int64_t body, keys;            /* where an object has its tensor, and that its dispatch keys */
  uint64_t plain, inference;     /* the keys of tensors that are nothing special */
  int64_t storage, holders;      /* where a tensor has its storage, and that the count of holders */
  Tensor *kept;                  /* of each large output, a tensor over its memory that we hold */
  int64_t waiting;
  void *arenas[ARENAS];
};

/* Something that must still be as it was. */
struct check {
  enum { SIZE, ITEM, DATA, VERSION, BYTES } what;
  Object *of, *key;
  uint64_t is; /* SIZE: len(of); ITEM: of[key]; DATA, VERSION: a tensor's; BYTES: address of bytes */
  uint64_t count;
};

struct quick {
  struct program *program;
  int64_t checks;
  const struct check *check;
  enum { LIST, TUPLE, ONE } result;
  int64_t calls;
};

/* Zeroed memory in huge pages, where the system has them to give. */
void *whet_arena_new(int64_t bytes) {
  uint64_t size = bytes + HUGE;
  char *p = mmap(0, size, 3, 0x22, -1, 0); /* read and write; private, anonymous */
  if (p == (char *)-1) return 0;
  char *start = (char *)(((uint64_t)p + HUGE - 1) & ~(uint64_t)(HUGE - 1));
  if (start > p) munmap(p, start - p);
  uint64_t used = (bytes + 4095) & ~4095ul, spare = p + size - (start + used);
  if (spare) munmap(start + used, spare);
  if (bytes >= HUGE) madvise(start, used, 14);
  return start;
}

void whet_arena_delete(void *arena, int64_t bytes) { munmap(arena, (bytes + 4095) & ~4095ul); }

void whet_program_delete(Object *capsule) {
  struct program *p = PyCapsule_GetPointer(capsule, "whet");
  while (p->waiting) {
    void *arena = p->arenas[--p->waiting];
    p->close(arena);
    whet_arena_delete(arena, p->arena);
  }
  for (int64_t i = 0; i < p->outputs; i++)
    if (p->kept[i]) aoti_torch_delete_tensor_object(p->kept[i]), p->kept[i] = 0;
  for (int64_t i = 0; i < p->constant_handles; i++) aoti_torch_delete_tensor_object(p->handles[i]);
  p->constant_handles = 0;
}

static inline int fits(const struct program *p, const struct kind *k, Object *x, void **data) {
  if (x->type != p->tensor) return 0;
  Tensor t = (Tensor)((char *)x + p->body);
  const char *body = *(char **)t;
  uint64_t keys = *(const uint64_t *)(body + p->keys);
  if (keys != p->plain && keys != p->inference) return 0;
  int32_t type;
  int64_t rank, *sizes, *strides;
  if (aoti_torch_get_dtype(t, &type) || type != k->type) return 0;
  if (aoti_torch_get_dim(t, &rank) || rank != k->rank) return 0;
  if (aoti_torch_get_sizes(t, &sizes) || aoti_torch_get_strides(t, &strides)) return 0;
  for (int64_t i = 0; i < rank; i++)
    if (sizes[i] != k->sizes[i] || (strides[i] != k->strides[i] && sizes[i] != 1)) return 0;
  return !aoti_torch_get_data_ptr(t, data);
}

static inline int empty(const struct kind *k, Tensor *made) {
  return aoti_torch_empty_strided(k->rank, k->sizes, k->strides, k->type, 0, -1, made);
}

/* Asks for huge pages where memory is not touched yet. */
static void huge(void *data, int64_t bytes) {
  uint64_t first = ((uint64_t)data + HUGE - 1) & ~(uint64_t)(HUGE - 1);
  uint64_t last = ((uint64_t)data + bytes) & ~(uint64_t)(HUGE - 1);
  if (last > first) madvise((void *)first, last - first, 14);
}

/* A new tensor over memory that was an output's before, if only we hold it and it is as it was. */
static int large(const struct program *p, const struct kind *k, Tensor *kept, Tensor *made) {
  Tensor one;
  const int64_t size = 1;
  if (aoti_torch_empty_strided(1, &size, &size, k->type, 0, -1, &one)) return 1;
  uint64_t keys = *(uint64_t *)(*(char **)one + p->keys); /* inference mode makes other tensors */
  aoti_torch_delete_tensor_object(one);
  if (*kept) {
    const char *body = *(char **)*kept, *storage = *(char **)(body + p->storage);
    int64_t bytes;
    if (*(int32_t *)(storage + p->holders) != 1 || *(uint64_t *)(body + p->keys) != keys ||
        aoti_torch_get_storage_size(*kept, &bytes) || bytes < k->large) {
      aoti_torch_delete_tensor_object(*kept);
      *kept = 0;
    }
  }
  if (!*kept) {
    void *data;
    if (empty(k, kept)) return 1;
    if (aoti_torch_get_data_ptr(*kept, &data)) return 1;
    huge(data, k->large);
  }
  return aoti_torch__reinterpret_tensor(*kept, k->rank, k->sizes, k->strides, 0, made);
}

static Object *none(void) {
  Py_IncRef(&_Py_NoneStruct);
  return &_Py_NoneStruct;
}

static Object *called(struct program *p, Object *const *args, int64_t n) {
  void *in[p->inputs + 1], *out[p->outputs + 1];
  Tensor made[p->outputs + 1];
  if (n != p->inputs || aoti_torch_grad_mode_is_enabled()) goto unfit;
  for (int64_t i = 0; i < n; i++)
    if (!fits(p, p->in + i, args[i], in + i)) goto unfit;
  void *arena = p->waiting ? p->arenas[--p->waiting] : whet_arena_new(p->arena);
  if (!arena) {
    PyErr_SetString(PyExc_RuntimeError, "out of memory");
    return 0;
  }
  int failed = 0;
  int64_t count = 0;
  for (; count < p->outputs && !failed; count++) {
    const struct kind *k = p->out + count;
    made[count] = 0;
    failed = (k->large ? large(p, k, p->kept + count, made + count) : empty(k, made + count)) ||
             aoti_torch_get_data_ptr(made[count], out + count);
  }
  if (!failed) {
    void *thread = PyEval_SaveThread();
    whet_spread();
    failed = p->entry(in, out, p->constants, arena);
    PyEval_RestoreThread(thread);
  }
  if (p->waiting < ARENAS) {
    p->arenas[p->waiting++] = arena;
  } else {
    p->close(arena);
    whet_arena_delete(arena, p->arena);
  }
  Object *list = failed ? 0 : PyList_New(count);
  for (int64_t i = 0; i < count; i++) {
    if (list) PyList_SetItem(list, i, _Z16THPVariable_WrapRKN2at10TensorBaseE(made[i]));
    if (made[i]) aoti_torch_delete_tensor_object(made[i]);
  }
  if (failed) PyErr_SetString(PyExc_RuntimeError, torch_exception_get_what_without_backtrace());
  return list;
unfit:
  return none();
}

Object *whet_call(Object *self, Object *const *args, int64_t n) {
  return called(PyCapsule_GetPointer(self, "whet"), args, n);
}

static inline int holds(const struct program *p, const struct check *c) {
  Tensor t = (Tensor)((char *)c->of + p->body);
  switch (c->what) {
    case SIZE: return PyDict_Size(c->of) == (int64_t)c->is;
    case ITEM: return PyDict_GetItem(c->of, c->key) == (Object *)c->is;
    case DATA: {
      void *data;
      return !aoti_torch_get_data_ptr(t, &data) && (uint64_t)data == c->is;
    }
    case VERSION: return _ZNK2at10TensorBase8_versionEv(t) == c->is;
    case BYTES: return !__builtin_memcmp(c->of, (void *)c->is, c->count);
  }
  return 0;
}

Object *whet_quick(Object *self, Object *const *args, int64_t n) {
  struct quick *q = PyCapsule_GetPointer(self, "whet");
  const char *off = getenv("WHET");
  if (off && !__builtin_strcmp(off, "off")) return none();
  if (_ZN2at8autocast19is_autocast_enabledEN3c1010DeviceTypeE(0)) return none();
  for (int64_t i = 0; i < q->checks; i++)
    if (!holds(q->program, q->check + i)) return none();
  Object *found = called(q->program, args, n);
  if (!found || found == &_Py_NoneStruct) return found;
  q->calls++;
  if (q->result == LIST) return found;
  Object *given;
  if (q->result == TUPLE) {
    given = PyList_AsTuple(found);
  } else {
    given = PyList_GetItem(found, 0);
    Py_IncRef(given);
  }
  Py_DecRef(found);
  return given;
}
