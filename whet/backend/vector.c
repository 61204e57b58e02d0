/* What generated kernels are written in: vectors of W float32 lanes, whatever the machine has.

   vf, vi         W floats, W 32-bit integers; a truth value of lanes is a vi of 0 and -1
   ld_T, st_T     from and to memory that holds T, a lane an element; _m: lanes where a mask is set
   v_f(x)         the function f of every lane, within about 2 units in the last place
   fold_how(x)    all lanes combined

   W is defined in front of this text. Only what gcc cannot see by itself is spelled in builtins. */

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef long long i64;
typedef float vf __attribute__((vector_size(4 * W), may_alias));
typedef int vi __attribute__((vector_size(4 * W), may_alias));
typedef unsigned vu __attribute__((vector_size(4 * W), may_alias));
typedef u16 vh __attribute__((vector_size(2 * W), may_alias));
typedef float vf_ __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int vi_ __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef u16 vh_ __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef u8 vb_ __attribute__((vector_size(W), aligned(1), may_alias));
typedef i8 vc_ __attribute__((vector_size(W), aligned(1), may_alias));
#define FN static inline __attribute__((always_inline))
/* Long functions stand once in the code, whatever number of loops call them. */
#define OUT static __attribute__((noinline, const))
#define LANES _Pragma("GCC unroll 32") for (int l = 0; l < W; l++)
#define INF __builtin_inff()
#define NOT_A_NUMBER __builtin_nanf("")

FN vf splat(float x) { return x - (vf){}; }
FN vi splat_i(int x) { return x - (vi){}; }
FN vi iota(void) { vi r; LANES r[l] = l; return r; }
FN vf sel(vi m, vf a, vf b) { return (vf)((m & (vi)a) | (~m & (vi)b)); }
FN vi sel_i(vi m, vi a, vi b) { return (m & a) | (~m & b); }
FN vf to_f(vi x) { return __builtin_convertvector(x, vf); }
FN vi to_i(vf x) { return __builtin_convertvector(x, vi); }

/* -- scalars ----------------------------------------------------------------------------------- */
FN float bits_f(unsigned x) { union { unsigned u; float f; } r = {x}; return r.f; }
FN unsigned f_bits(float x) { union { float f; unsigned u; } r = {x}; return r.u; }
FN float get_bf16(u16 x) { return bits_f((unsigned)x << 16); }
FN u16 put_bf16(float x) {
  unsigned u = f_bits(x);
  return x != x ? (u16)(u >> 16 | 64) : (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
FN i64 div_i(i64 a, i64 b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
FN i64 mod_i(i64 a, i64 b) { return a - div_i(a, b) * b; }
FN i64 max_i(i64 a, i64 b) { return a > b ? a : b; }
FN i64 min_i(i64 a, i64 b) { return a < b ? a : b; }
FN i64 power_i(i64 a, i64 b) { i64 r = 1; while (b-- > 0) r *= a; return r; }
FN float div_f(float a, float b) { return __builtin_floorf(a / b); }
FN float max_f(float a, float b) { return a != a || a > b ? a : b; }
FN float min_f(float a, float b) { return a != a || a < b ? a : b; }
FN double div_d(double a, double b) { return __builtin_floor(a / b); }
FN double max_d(double a, double b) { return a != a || a > b ? a : b; }
FN double min_d(double a, double b) { return a != a || a < b ? a : b; }
/* The remainder towards minus infinity; adding b last keeps tiny quotients apart from whole ones. */
FN double mod_d(double a, double b) {
  double r = __builtin_fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
FN float mod_f(float a, float b) {
  float r = __builtin_fmodf(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

/* -- memory ------------------------------------------------------------------------------------ */
FN int any(vi m) { int r = 0; LANES r |= m[l]; return r; }
FN vf ld_f32(const float *p) { return *(const vf_ *)p; }
FN void st_f32(float *p, vf x) { *(vf_ *)p = x; }
FN vi ld_i32(const int *p) { return *(const vi_ *)p; }
FN void st_i32(int *p, vi x) { *(vi_ *)p = x; }
FN vi ld_u8(const u8 *p) { return __builtin_convertvector(*(const vb_ *)p, vi); }
FN void st_u8(u8 *p, vi x) { *(vb_ *)p = __builtin_convertvector(x, vb_); }
FN vi ld_i8(const i8 *p) { return __builtin_convertvector(*(const vc_ *)p, vi); }
FN void st_i8(i8 *p, vi x) { *(vc_ *)p = __builtin_convertvector(x, vc_); }
FN vi ld_i16(const i16 *p) { vi r; LANES r[l] = p[l]; return r; }
FN void st_i16(i16 *p, vi x) { LANES p[l] = x[l]; }
FN vf ld_f16(const _Float16 *p) { vf r; LANES r[l] = p[l]; return r; }
FN void st_f16(_Float16 *p, vf x) { LANES p[l] = x[l]; }
FN void st_i64(i64 *p, vi x) { LANES p[l] = x[l]; }
FN vf from_bf16(vh x) {
#if defined(__AVX512F__) && W == 16
  typedef short v16hi __attribute__((vector_size(32)));
  return (vf)(__builtin_ia32_pmovzxwd512_mask((v16hi)x, (vi){}, -1) << 16);
#else
  return (vf)(__builtin_convertvector(x, vu) << 16);
#endif
}
FN vh to_bf16(vf x) {
  vu u = (vu)x;
  vu r = u + 0x7fff + (u >> 16 & 1);
  vu m = (vu)(x != x);
  return __builtin_convertvector(((m & (u | 0x400000)) | (~m & r)) >> 16, vh);
}
FN vf ld_bf16(const u16 *p) { return from_bf16(*(const vh_ *)p); }
FN void st_bf16(u16 *p, vf x) { *(vh_ *)p = to_bf16(x); }

#if defined(__AVX512F__) && W == 16
#define MASK(m) __builtin_ia32_ptestmd512(m, m, -1)
FN vf ld_f32_m(const float *p, vi m) { return __builtin_ia32_loadups512_mask(p, (vf){}, MASK(m)); }
FN void st_f32_m(float *p, vf x, vi m) { __builtin_ia32_storeups512_mask(p, x, MASK(m)); }
/* Where either is not a number, the second: a bound in front leaves what is not a number alone. */
FN vf hmax(vf a, vf b) { return __builtin_ia32_maxps512_mask(a, b, a, -1, 4); }
FN vf hmin(vf a, vf b) { return __builtin_ia32_minps512_mask(a, b, a, -1, 4); }
#elif defined(__AVX2__) && W == 8
FN vf ld_f32_m(const float *p, vi m) { return __builtin_ia32_maskloadps256((const vf *)p, m); }
FN void st_f32_m(float *p, vf x, vi m) { __builtin_ia32_maskstoreps256((vf *)p, m, x); }
FN vf hmax(vf a, vf b) { return __builtin_ia32_maxps256(a, b); }
FN vf hmin(vf a, vf b) { return __builtin_ia32_minps256(a, b); }
#else
FN vf ld_f32_m(const float *p, vi m) { vf r = {}; LANES if (m[l]) r[l] = p[l]; return r; }
FN void st_f32_m(float *p, vf x, vi m) { LANES if (m[l]) p[l] = x[l]; }
FN vf hmax(vf a, vf b) { return sel(a > b, a, b); }
FN vf hmin(vf a, vf b) { return sel(a < b, a, b); }
#endif
FN vf vmax(vf a, vf b) { return sel(a != a, a, hmax(a, b)); }
FN vf vmin(vf a, vf b) { return sel(a != a, a, hmin(a, b)); }
FN vi vmax_i(vi a, vi b) { return sel_i(a > b, a, b); }
FN vi vmin_i(vi a, vi b) { return sel_i(a < b, a, b); }

/* Masked and strided: a lane at a time. */
#define SAME(x) (x)
#define EACH(T, C, V, GET, PUT)                                                                    \
  FN V lds_##T(const C *p, i64 s) { V r; LANES r[l] = GET(p[l * s]); return r; }                   \
  FN V lds_##T##_m(const C *p, i64 s, vi m) {                                                      \
    V r = {}; LANES if (m[l]) r[l] = GET(p[l * s]); return r;                                      \
  }                                                                                                \
  FN void sts_##T(C *p, i64 s, V x) { LANES p[l * s] = PUT(x[l]); }                                \
  FN void sts_##T##_m(C *p, i64 s, V x, vi m) { LANES if (m[l]) p[l * s] = PUT(x[l]); }
#define MASKED(T, C, V)                                                                            \
  FN V ld_##T##_m(const C *p, vi m) { return lds_##T##_m(p, 1, m); }                               \
  FN void st_##T##_m(C *p, V x, vi m) { sts_##T##_m(p, 1, x, m); }
EACH(f32, float, vf, SAME, SAME)
EACH(f16, _Float16, vf, SAME, SAME)
EACH(bf16, u16, vf, get_bf16, put_bf16)
EACH(i64, i64, vi, SAME, SAME)
EACH(i32, int, vi, SAME, SAME)
EACH(i16, i16, vi, SAME, SAME)
EACH(i8, i8, vi, SAME, SAME)
EACH(u8, u8, vi, SAME, SAME)
MASKED(f16, _Float16, vf)
MASKED(bf16, u16, vf)
MASKED(i64, i64, vi)
MASKED(i32, int, vi)
MASKED(i16, i16, vi)
MASKED(i8, i8, vi)
MASKED(u8, u8, vi)

/* -- folds: halves onto each other ------------------------------------------------------------- */
#if W == 16
#define HALVES(STEP) STEP(8) STEP(4) STEP(2) STEP(1)
#elif W == 8
#define HALVES(STEP) STEP(4) STEP(2) STEP(1)
#elif W == 4
#define HALVES(STEP) STEP(2) STEP(1)
#else
#define HALVES(STEP)
#endif
#define FOLD_SUM(n) x = x + __builtin_shuffle(x, iota() ^ n);
#define FOLD_PROD(n) x = x * __builtin_shuffle(x, iota() ^ n);
#define FOLD_MAX(n) x = vmax(x, __builtin_shuffle(x, iota() ^ n));
#define FOLD_MIN(n) x = vmin(x, __builtin_shuffle(x, iota() ^ n));
FN float fold_sum(vf x) { HALVES(FOLD_SUM) return x[0]; }
FN float fold_prod(vf x) { HALVES(FOLD_PROD) return x[0]; }
FN float fold_max(vf x) { HALVES(FOLD_MAX) return x[0]; }
FN float fold_min(vf x) { HALVES(FOLD_MIN) return x[0]; }

/* x / s, as a product where 1 / s is a normal number. */
FN vf over(vf x, float s) {
  float r = 1 / s, a = __builtin_fabsf(r);
  return __builtin_expect(a > 1e-37f && a < 1e37f, 1) ? x * splat(r) : x / splat(s);
}

/* -- functions --------------------------------------------------------------------------------- */
FN vf v_sqrt(vf x) { vf r; LANES r[l] = __builtin_sqrtf(x[l]); return r; }
FN vf v_rsqrt(vf x) { return 1 / v_sqrt(x); }
FN vf v_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }
FN vf v_copysign(vf x, vf y) {
  return (vf)(((vi)x & 0x7fffffff) | ((vi)y & (int)0x80000000));
}
FN vf v_sign(vf x) { return sel(x != x, (vf){}, (vf)((vi)splat(1) & (x > 0)) - (vf)((vi)splat(1) & (x < 0))); }
FN vf v_floor(vf x) { vf r; LANES r[l] = __builtin_floorf(x[l]); return r; }
FN vf v_ceil(vf x) { vf r; LANES r[l] = __builtin_ceilf(x[l]); return r; }
FN vf v_trunc(vf x) { vf r; LANES r[l] = __builtin_truncf(x[l]); return r; }
FN vf v_round(vf x) { vf r; LANES r[l] = __builtin_nearbyintf(x[l]); return r; }
FN vi v_isnan(vf x) { return x != x; }
FN vi v_isinf(vf x) { return v_abs(x) == INF; }

/* To the nearest whole number, of |x| below 2^22. */
#define MAGIC 12582912.0f
FN vf whole(vf x) { return (x + MAGIC) - MAGIC; }
/* x * 2^n for whole n, rounded once where the result is normal. */
FN vf scaled(vf x, vf n) {
#if defined(__AVX512F__) && W == 16
  return __builtin_ia32_scalefps512_mask(x, n, x, -1, 4);
#else
  vi k = to_i(n), half = k >> 1;
  return x * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
#endif
}
FN vf clamped(vf x, float low, float high) { return hmin(splat(high), hmax(splat(low), x)); }
/* e^x, x from -104 to 89. x = n ln 2 + r with |r| <= ln 2 / 2, e^r = 1 + r + r^2 P(r). */
FN vf exp_of(vf x) {
  vf n = whole(x * 1.44269504f);
  vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vf p = r * 1.3951717e-3f + 8.3695984e-3f;
  p = p * r + 4.16661873e-2f;
  p = p * r + 0.166665129f;
  p = p * r + 0.5f;
  return scaled(p * (r * r) + r + 1, n);
}
OUT vf v_exp(vf x) { return exp_of(clamped(x, -104, 89)); }
OUT vf v_exp2(vf x) {
  x = clamped(x, -151, 129);
  vf n = whole(x);
  vf r = (x - n) * 0.693147181f;
  vf p = r * 1.3951717e-3f + 8.3695984e-3f;
  p = p * r + 4.16661873e-2f;
  p = p * r + 0.166665129f;
  p = p * r + 0.5f;
  return scaled(p * (r * r) + r + 1, n);
}
OUT vf v_expm1(vf x) {
  vf y = clamped(x, -18, 89);
  vf n = whole(y * 1.44269504f);
  vf r = y - n * 0.693359375f + n * 2.12194440e-4f;
  vf p = r * 1.99193799e-4f + 1.39472249e-3f;
  p = p * r + 8.33326264e-3f;
  p = p * r + 4.16662538e-2f;
  p = p * r + 0.166666669f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  vf half = scaled(splat(0.5f), n); /* 2^128 would be infinite, 2^127 is not */
  vf e = (p * half + (half - 0.5f)) * 2;
  return sel(v_abs(x) < 1e-7f, x, e);
}
/* log x = e ln 2 + log m, m from sqrt(1/2) to sqrt(2); log(1 + f) = f - f^2/2 + f^3 P(f). */
FN vf log_parts(vf x, vf *e) {
  vi tiny = x < 1.17549435e-38f;
  x = sel(tiny, x * 8388608.0f, x);
  vi b = (vi)x - 0x3f3504f3;
  *e = to_f(b >> 23) - (vf)((vi)splat(23) & tiny);
  return (vf)((b & 0x7fffff) + 0x3f3504f3);
}
FN vf log_tail(vf f) {
  vf p = f * 6.74660132e-2f - 0.116756413f;
  p = p * f + 0.118881746f;
  p = p * f - 0.124055914f;
  p = p * f + 0.142195509f;
  p = p * f - 0.166679957f;
  p = p * f + 0.200021187f;
  p = p * f - 0.250000096f;
  p = p * f + 0.333333126f;
  return p * f * (f * f);
}
FN vf log_special(vf x, vf r) {
  r = sel(x == 0, splat(-INF), r);
  r = sel(x == INF, x, r);
  return sel((x < 0) | (x != x), splat(NOT_A_NUMBER), r);
}
OUT vf v_log(vf x) {
  vf e, f = log_parts(x, &e) - 1;
  vf r = log_tail(f) - e * 2.12194440e-4f - 0.5f * (f * f) + f + e * 0.693359375f;
  return log_special(x, r);
}
/* log(m) / log(base), the product carried in two parts: k = high + low, high short. */
FN vf log_scaled(vf x, float unit_high, float unit_low, float high, float low) {
  vf e, f = log_parts(x, &e) - 1;
  vf t = log_tail(f) - 0.5f * (f * f);
  vf h = (vf)((vi)(f + t) & (int)0xfffff000);
  vf l = (f - h) + t;
  return log_special(x, e * unit_low + (h + l) * low + l * high + h * high + e * unit_high);
}
OUT vf v_log2(vf x) { return log_scaled(x, 1, 0, 1.44238281f, 3.12228396e-4f); }
OUT vf v_log10(vf x) { return log_scaled(x, 0.301025391f, 4.60503907e-6f, 0.434204102f, 9.03803375e-5f); }
OUT vf v_log1p(vf x) {
  vf u = 1 + x;
  vf c = sel(x < 1, x - (u - 1), 1 - (u - x)) / u; /* what rounding 1 + x lost */
  vf e, m = log_parts(u, &e), f = m - 1;
  vf r = log_tail(f) - e * 2.12194440e-4f + sel(v_abs(u) < 1e30f, c, (vf){}) - 0.5f * (f * f) + f + e * 0.693359375f;
  return sel(v_abs(x) < 1e-7f, x, log_special(u, r));
}
OUT vf v_sigmoid(vf x) {
  vf e = exp_of(hmax(splat(-104), -v_abs(x)));
  return sel(x < 0, e, splat(1)) / (1 + e);
}
OUT vf v_tanh(vf x) {
  vf a = v_abs(x), s = x * x;
  vf p = s * -5.71703656e-3f + 2.06505790e-2f;
  p = p * s - 5.37434953e-2f;
  p = p * s + 0.133314912f;
  p = p * s - 0.333332839f;
  vf small = p * s * a + a;
  vf t = hmin(splat(20), a + a);
  vf large = 1 - 2 / (exp_of(t) + 1);
  return v_copysign(sel(a < 0.625f, small, large), x);
}
/* erf x = x + x S(x^2) near 0; further out 1 - e^(-t - t Q(t)), t = |x|. */
OUT vf v_erf(vf x) {
  vf t = hmin(splat(4), v_abs(x)), s = t * t;
  vf p = s * 8.21542372e-5f - 8.10596512e-4f;
  p = p * s + 5.19779717e-3f;
  p = p * s - 2.68581043e-2f;
  p = p * s + 0.112836725f;
  p = p * s - 0.376126323f;
  p = p * s + 0.128379166f;
  vf q = t * -2.14154760e-4f + 3.21645842e-3f;
  q = q * t - 2.28951459e-2f;
  q = q * t + 0.105270536f;
  q = q * t + 0.635711226f;
  q = q * t + 0.128516609f;
  vf far = 1 - exp_of(-t - t * q);
  return v_copysign(sel(t < 0.95f, p * t + t, far), x);
}
/* x = n pi/2 + r; pi/2 in four parts of which n times the first three is exact. */
#define FAR 30000.0f
FN vf turned(vf x, vi *n) {
  vf k = whole(x * 0.636619772f);
  *n = to_i(k);
  return x - k * 1.5703125f - k * 4.83751297e-4f - k * 7.54953362e-8f - k * 2.56334407e-12f;
}
FN vf v_sin_of(vf r) {
  vf s = r * r;
  vf p = s * 2.71756442e-6f - 1.98392566e-4f;
  p = p * s + 8.33332914e-3f;
  p = p * s - 0.166666666f;
  return p * s * r + r;
}
FN vf v_cos_of(vf r) {
  vf s = r * r;
  vf p = s * 2.44312031e-5f - 1.38873060e-3f;
  p = p * s + 4.16666457e-2f;
  return p * (s * s) - 0.5f * s + 1;
}
FN vf circular(vf x, int quarter) {
  vi n;
  vf r = turned(x, &n);
  n += quarter;
  vf y = sel((n & 1) == 0, v_sin_of(r), v_cos_of(r));
  return (vf)((vi)y ^ ((n & 2) << 30));
}
OUT vf v_sin(vf x) {
  vf y = circular(x, 0);
  vi far = v_abs(x) > FAR;
  if (any(far)) LANES if (far[l]) y[l] = __builtin_sinf(x[l]);
  return sel(v_abs(x) < 1e-4f, x, y);
}
OUT vf v_cos(vf x) {
  vf y = circular(x, 1);
  vi far = v_abs(x) > FAR;
  if (any(far)) LANES if (far[l]) y[l] = __builtin_cosf(x[l]);
  return y;
}
