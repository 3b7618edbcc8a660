"""CUDA kernels for 3D Gaussians, compiled at run time.

The steps are those of ``cpu``: a table of projected gaussians, lists per tile, blending, and the same again backward. A block renders a tile, a thread a
pixel. Every pair of a gaussian and a tile has a slot of its own, filled without atomics, so results are deterministic. Features are blended four at a time, the
depth as the last of them; more features take further passes over the lists.

Columns of the table: as in ``cpu``, the features padded to a multiple of four. The list of a tile is sorted by keys, tile above rank in depth.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.geometry import Cameras
from npbgpp.kernels.backend import CudaModule
from npbgpp.kernels.gaussians.camera_values import camera_values
from npbgpp.kernels.gaussians.self_check import difference_from_reference
from npbgpp.kernels.gaussians.types import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, TILE, GaussianImage, SplattingSettings

_HEAD, _SUMS, _PASS = 11, 6, 4  # columns before the features in the table and in the slots, features per pass

_SOURCE = f"""
#define TILE {TILE}
#define MAX_ALPHA {MAX_ALPHA}f
#define MIN_ALPHA {MIN_ALPHA!r}f
#define MIN_TRANSMITTANCE {MIN_TRANSMITTANCE!r}f
#define HEAD {_HEAD}
#define SUMS {_SUMS}
#define PASS {_PASS}
""" + r"""
#define BATCH 64
#define WARPS 8
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define TINY 1.17549435e-38f

// camera: R (rows), T, fx, fy, cx, cy, centre, smallest and largest x/z and y/z, dilation, near, antialiased, rgb

struct Gaussian {
    float x, y, z;             // in camera coordinates
    float q[4], inverse;       // normalised quaternion, 1 / its length
    float Q[9], scale[3];      // rotation, standard deviations
    float M[9];                // axes in camera coordinates (columns)
    float sx, sy;              // clamped slopes
    float j00, j02, j11, j12;  // Jacobian
    float a[3], b[3];          // Jacobian times axes
};

__device__ void view(Gaussian &g, const float *mean, const float *c) {
    g.x = mean[0] * c[0] + mean[1] * c[3] + mean[2] * c[6] + c[9];
    g.y = mean[0] * c[1] + mean[1] * c[4] + mean[2] * c[7] + c[10];
    g.z = mean[0] * c[2] + mean[1] * c[5] + mean[2] * c[8] + c[11];
}

__device__ void image_axes(Gaussian &g, const float *log_scales, const float *quaternion, const float *c) {
    float w = quaternion[0], x = quaternion[1], y = quaternion[2], z = quaternion[3];
    g.inverse = 1.0f / fmaxf(sqrtf(w * w + x * x + y * y + z * z), 1e-12f);
    w *= g.inverse; x *= g.inverse; y *= g.inverse; z *= g.inverse;
    g.q[0] = w; g.q[1] = x; g.q[2] = y; g.q[3] = z;
    g.Q[0] = 1 - 2 * (y * y + z * z); g.Q[1] = 2 * (x * y - w * z); g.Q[2] = 2 * (x * z + w * y);
    g.Q[3] = 2 * (x * y + w * z); g.Q[4] = 1 - 2 * (x * x + z * z); g.Q[5] = 2 * (y * z - w * x);
    g.Q[6] = 2 * (x * z - w * y); g.Q[7] = 2 * (y * z + w * x); g.Q[8] = 1 - 2 * (x * x + y * y);
    g.sx = fminf(fmaxf(g.x / g.z, c[19]), c[20]);
    g.sy = fminf(fmaxf(g.y / g.z, c[21]), c[22]);
    g.j00 = -c[12] / g.z; g.j02 = c[12] * g.sx / g.z;
    g.j11 = -c[13] / g.z; g.j12 = c[13] * g.sy / g.z;
    for (int j = 0; j < 3; j++) {
        g.scale[j] = expf(log_scales[j]);
        for (int k = 0; k < 3; k++)
            g.M[3 * k + j] = (c[k] * g.Q[j] + c[3 + k] * g.Q[3 + j] + c[6 + k] * g.Q[6 + j]) * g.scale[j];
        g.a[j] = g.j00 * g.M[j] + g.j02 * g.M[6 + j];
        g.b[j] = g.j11 * g.M[3 + j] + g.j12 * g.M[6 + j];
    }
}

__device__ void covariance(const Gaussian &g, float &xx, float &xy, float &yy) {
    xx = g.a[0] * g.a[0] + g.a[1] * g.a[1] + g.a[2] * g.a[2];
    xy = g.a[0] * g.b[0] + g.a[1] * g.b[1] + g.a[2] * g.b[2];
    yy = g.b[0] * g.b[0] + g.b[1] * g.b[1] + g.b[2] * g.b[2];
}

__device__ void sh_basis(float x, float y, float z, int degree, float *basis) {
    basis[0] = 0.28209479177387814f;
    if (degree > 0) {
        basis[1] = -0.4886025119029199f * y; basis[2] = 0.4886025119029199f * z; basis[3] = -0.4886025119029199f * x;
    }
    if (degree > 1) {
        basis[4] = 1.0925484305920792f * x * y; basis[5] = -1.0925484305920792f * y * z;
        basis[6] = 0.31539156525252005f * (3 * z * z - 1); basis[7] = -1.0925484305920792f * x * z;
        basis[8] = 0.5462742152960396f * (x * x - y * y);
    }
    if (degree > 2) {
        float inner = 5 * z * z - 1;
        basis[9] = -0.5900435899266435f * y * (3 * x * x - y * y); basis[10] = 2.890611442640554f * x * y * z;
        basis[11] = -0.4570457994644658f * y * inner; basis[12] = 0.3731763325901154f * z * (inner - 2);
        basis[13] = -0.4570457994644658f * x * inner; basis[14] = 1.445305721320277f * z * (x * x - y * y);
        basis[15] = -0.5900435899266435f * x * (x * x - 3 * y * y);
    }
}

__device__ void sh_slope(float x, float y, float z, int degree, const float *g, float *slope) {
    slope[0] = -0.4886025119029199f * g[3]; slope[1] = -0.4886025119029199f * g[1]; slope[2] = 0.4886025119029199f * g[2];
    if (degree > 1) {
        float k = 1.0925484305920792f;
        slope[0] += k * (g[4] * y - g[7] * z + g[8] * x);
        slope[1] += k * (g[4] * x - g[5] * z - g[8] * y);
        slope[2] += 6 * 0.31539156525252005f * g[6] * z - k * (g[5] * y + g[7] * x);
    }
    if (degree > 2) {
        float inner = 5 * z * z - 1, squares = x * x - y * y;
        float g9 = 3 * 0.5900435899266435f * g[9], g10 = 2.890611442640554f * g[10], g11 = 0.4570457994644658f * g[11];
        float g12 = 3 * 0.3731763325901154f * g[12], g13 = 0.4570457994644658f * g[13];
        float g14 = 1.445305721320277f * g[14], g15 = 3 * 0.5900435899266435f * g[15];
        slope[0] += -2 * g9 * x * y + g10 * y * z - g13 * inner + 2 * g14 * x * z - g15 * squares;
        slope[1] += -g9 * squares + g10 * x * z - g11 * inner - 2 * g14 * y * z + 2 * g15 * x * y;
        slope[2] += g10 * x * y - 10 * z * (g11 * y + g13 * x) + g12 * inner + g14 * squares;
    }
}

__device__ float direction(const float *mean, const float *c, float *d) {
    d[0] = mean[0] - c[16]; d[1] = mean[1] - c[17]; d[2] = mean[2] - c[18];
    float inverse = 1.0f / fmaxf(sqrtf(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]), 1e-12f);
    d[0] *= inverse; d[1] *= inverse; d[2] *= inverse;
    return inverse;
}

// Fills the rows of the table and the number of tiles of each gaussian; table and whole are the same memory.
extern "C" __global__ void project(
    const float *means, const float *log_scales, const float *quaternions, const float *logits, const float *sh, const float *c,
    float *table, int *whole, long long *tiles, int n, int stride, int harmonics, int channels, int degree, int height, int width
) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float *row = table + i * stride;
    int *box = whole + i * stride;
    box[7] = -1;
    tiles[i] = 0;
    Gaussian g;
    view(g, means + 3 * i, c);
    if (!(g.z > c[24])) return;
    image_axes(g, log_scales + 3 * i, quaternions + 4 * i, c);
    float xx, xy, yy;
    covariance(g, xx, xy, yy);
    float before = xx * yy - xy * xy;
    xx += c[23]; yy += c[23];
    float after = xx * yy - xy * xy, opacity = 1.0f / (1.0f + expf(-logits[i]));
    if (c[25] > 0) opacity *= sqrtf(fmaxf(before / after, TINY));
    if (!(opacity >= MIN_ALPHA && after > 0)) return;
    float reach = 2 * logf(opacity / MIN_ALPHA);
    float half_u = sqrtf(reach * xx) + 1e-3f, half_v = sqrtf(reach * yy) + 1e-3f;
    float u = c[14] - c[12] * g.x / g.z, v = c[15] - c[13] * g.y / g.z;
    float left = u - half_u - 0.5f, right = u + half_u - 0.5f, top = v - half_v - 0.5f, bottom = v + half_v - 0.5f;
    if (!(right >= 0 && left <= width - 1 && bottom >= 0 && top <= height - 1)) return;
    int x0 = (int)ceilf(fmaxf(left, 0.0f)), x1 = (int)floorf(fminf(right, width - 1.0f));
    int y0 = (int)ceilf(fmaxf(top, 0.0f)), y1 = (int)floorf(fminf(bottom, height - 1.0f));
    if (x0 > x1 || y0 > y1) return;
    row[0] = u; row[1] = v;
    row[2] = -0.5f * LOG2E * yy / after; row[3] = LOG2E * xy / after; row[4] = -0.5f * LOG2E * xx / after;
    row[5] = log2f(opacity);
    box[6] = x0; box[7] = x1; box[8] = y0; box[9] = y1;
    tiles[i] = (long long)(x1 / TILE - x0 / TILE + 1) * (y1 / TILE - y0 / TILE + 1);
    float d[3], basis[16];
    direction(means + 3 * i, c, d);
    sh_basis(d[0], d[1], d[2], degree, basis);
    for (int k = channels; k < stride - HEAD; k++) row[HEAD + k] = 0;
    for (int channel = 0; channel < channels; channel++) {
        float value = c[26] > 0 ? 0.5f : 0.0f;
        for (int k = 0; k < (degree + 1) * (degree + 1); k++) value += basis[k] * sh[(i * harmonics + k) * channels + channel];
        row[HEAD + channel] = c[26] > 0 ? fmaxf(value, 0.0f) : value;
    }
    row[HEAD + channels] = g.z;
}

// Key and slot of every pair of a gaussian and a tile.
extern "C" __global__ void list_pairs(
    int *whole, const long long *slots, const long long *ranks, long long *keys, int n, int stride, int across
) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int *box = whole + i * stride;
    if (box[7] < 0) return;
    long long slot = slots[i];
    box[10] = (int)slot;
    for (int row = box[8] / TILE; row <= box[9] / TILE; row++)
        for (int column = box[6] / TILE; column <= box[7] / TILE; column++)
            keys[slot++] = ((long long)(row * across + column) << 32) | ranks[i];
}

struct Splat { float u, v, xx, xy, yy, power, f[PASS]; long long slot; };

// A gaussian of the list of a tile, with the features of one pass.
__device__ Splat read(const float *table, const int *whole, long long i, int stride, int pass, int tile_x, int tile_y) {
    const float *row = table + i * stride;
    const int *box = whole + i * stride;
    Splat s;
    s.u = row[0]; s.v = row[1]; s.xx = row[2]; s.xy = row[3]; s.yy = row[4]; s.power = row[5];
    for (int k = 0; k < PASS; k++) s.f[k] = row[HEAD + PASS * pass + k];
    s.slot = box[10] + (long long)(tile_y - box[8] / TILE) * (box[7] / TILE - box[6] / TILE + 1) + tile_x - box[6] / TILE;
    return s;
}

// Alpha at a pixel, and whether it is saturated.
__device__ float alpha_at(const Splat &s, float dx, float dy, bool &saturated) {
    float alpha = exp2f(fminf((s.xx * dx + s.xy * dy) * dx + s.yy * dy * dy + s.power, 0.0f));
    saturated = alpha >= MAX_ALPHA;
    if (alpha < MIN_ALPHA) return 0.0f;
    return saturated ? MAX_ALPHA : alpha;
}

__device__ float warp_sum(float value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
    return value;
}

// Blends the features of one pass: planes (features, h, w), and the transmittance.
extern "C" __global__ void blend(
    const float *table, const int *whole, const long long *starts, const long long *listed, float *planes, float *transmittances,
    int stride, int pass, int height, int width
) {
    __shared__ Splat splats[BATCH];
    int across = (width + TILE - 1) / TILE, tile_x = blockIdx.x % across, tile_y = blockIdx.x / across;
    int thread = threadIdx.x;
    int x = tile_x * TILE + thread % TILE, y = tile_y * TILE + thread / TILE;
    bool inside = x < width && y < height;
    float transmittance = inside ? 1.0f : 0.0f, sums[PASS] = {0};
    long long last = starts[blockIdx.x + 1];
    for (long long first = starts[blockIdx.x]; first < last; first += BATCH) {
        int count = last - first < BATCH ? (int)(last - first) : BATCH;
        if (!__syncthreads_or(transmittance >= MIN_TRANSMITTANCE)) break;
        if (thread < count) splats[thread] = read(table, whole, listed[first + thread], stride, pass, tile_x, tile_y);
        __syncthreads();
        for (int k = 0; k < count; k++) {
            bool saturated;
            float weight = alpha_at(splats[k], x + 0.5f - splats[k].u, y + 0.5f - splats[k].v, saturated) * transmittance;
            transmittance -= weight;
            for (int f = 0; f < PASS; f++) sums[f] += weight * splats[k].f[f];
        }
    }
    if (!inside) return;
    long long pixel = (long long)y * width + x, size = (long long)height * width;
    for (int f = 0; f < PASS; f++) planes[(pass * PASS + f) * size + pixel] = sums[f];
    transmittances[pixel] = transmittance;
}

// Adds to the slots; behind: gradient times the whole light of each pixel, in this pass. Front to back, as in blend.
extern "C" __global__ void blend_backward(
    const float *table, const int *whole, const long long *starts, const long long *listed, const float *gradients, const float *lights,
    float *slots, int stride, int columns, int pass, int height, int width
) {
    __shared__ Splat splats[BATCH];
    __shared__ float partial[BATCH][WARPS][SUMS + PASS];
    int across = (width + TILE - 1) / TILE, tile_x = blockIdx.x % across, tile_y = blockIdx.x / across;
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int x = tile_x * TILE + thread % TILE, y = tile_y * TILE + thread / TILE;
    bool inside = x < width && y < height;
    long long pixel = (long long)y * width + x, size = (long long)height * width;
    float transmittance = inside ? 1.0f : 0.0f, behind = inside ? lights[pixel] : 0.0f, g[PASS];
    for (int f = 0; f < PASS; f++) g[f] = inside ? gradients[(pass * PASS + f) * size + pixel] : 0.0f;
    long long last = starts[blockIdx.x + 1];
    for (long long first = starts[blockIdx.x]; first < last; first += BATCH) {
        int count = last - first < BATCH ? (int)(last - first) : BATCH;
        bool dark = !__syncthreads_or(transmittance >= MIN_TRANSMITTANCE);
        if (thread < count) splats[thread] = read(table, whole, listed[first + thread], stride, pass, tile_x, tile_y);
        __syncthreads();
        for (int k = 0; k < count; k++) {
            float sums[SUMS + PASS] = {0}, a = 0;
            if (!dark) {
                bool saturated;
                float dx = x + 0.5f - splats[k].u, dy = y + 0.5f - splats[k].v, own = 0;
                a = alpha_at(splats[k], dx, dy, saturated);
                float weight = a * transmittance;
                for (int f = 0; f < PASS; f++) {
                    own += g[f] * splats[k].f[f];
                    sums[SUMS + f] = weight * g[f];
                }
                own *= weight;
                transmittance -= weight;
                behind -= own;
                float s = saturated ? 0.0f : own - behind * a / (1.0f - a);
                sums[0] = s; sums[1] = s * dx; sums[2] = s * dy;
                sums[3] = s * dx * dx; sums[4] = s * dx * dy; sums[5] = s * dy * dy;
            }
            bool any = __any_sync(0xffffffffu, a > 0);
            for (int f = 0; f < SUMS + PASS; f++) {
                float sum = any ? warp_sum(sums[f]) : 0.0f;
                if (lane == 0) partial[k][warp][f] = sum;
            }
        }
        __syncthreads();
        for (int item = thread; item < count * (SUMS + PASS); item += blockDim.x) {
            int k = item / (SUMS + PASS), f = item % (SUMS + PASS);
            float sum = 0;
            for (int w = 0; w < WARPS; w++) sum += partial[k][w][f];
            int column = f < SUMS ? f : f + PASS * pass;
            if (f < SUMS && pass > 0) sum += slots[splats[k].slot * columns + column];
            slots[splats[k].slot * columns + column] = sum;
        }
    }
}

extern "C" __global__ void project_backward(
    const float *means, const float *log_scales, const float *quaternions, const float *logits, const float *sh, const float *c,
    const float *table, const int *whole, const long long *tiles, const float *slots, float *g_means, float *g_log_scales,
    float *g_quaternions, float *g_logits, float *g_sh, int n, int stride, int columns, int harmonics, int channels, int degree
) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;  // the gradients are 0 beforehand
    const float *row = table + i * stride;
    const int *box = whole + i * stride;
    if (box[7] < 0) return;
    float sums[SUMS] = {0}, by_depth = 0;
    for (long long slot = box[10]; slot < box[10] + tiles[i]; slot++) {
        for (int f = 0; f < SUMS; f++) sums[f] += slots[slot * columns + f];
        by_depth += slots[slot * columns + SUMS + channels];
    }
    Gaussian g;
    view(g, means + 3 * i, c);
    image_axes(g, log_scales + 3 * i, quaternions + 4 * i, c);

    // the exponent: centre and inverse covariance (kxx, kxy, kyy), then the covariance
    float kxx = -2 * LN2 * row[2], kxy = -LN2 * row[3], kyy = -2 * LN2 * row[4];
    float gu = kxx * sums[1] + kxy * sums[2], gv = kxy * sums[1] + kyy * sums[2];
    float hxx = 0.5f * sums[3], hxy = 0.5f * sums[4], hyy = 0.5f * sums[5];
    float axx = kxx * hxx + kxy * hxy, axy = kxx * hxy + kxy * hyy, ayx = kxy * hxx + kyy * hxy, ayy = kxy * hxy + kyy * hyy;
    float cxx = axx * kxx + axy * kxy, cxy = axx * kxy + axy * kyy, cyy = ayx * kxy + ayy * kyy;
    g_logits[i] = sums[0] / (1.0f + expf(logits[i]));
    if (c[25] > 0) {
        float xx, xy, yy;
        covariance(g, xx, xy, yy);
        float inverse = 1.0f / fmaxf(xx * yy - xy * xy, TINY), half_s = 0.5f * sums[0];
        cxx += half_s * (yy * inverse - kxx); cxy += half_s * (-xy * inverse - kxy); cyy += half_s * (xx * inverse - kyy);
    }

    // the Jacobian, the axes, and the centre
    float g00 = 0, g02 = 0, g11 = 0, g12 = 0, N[9];
    for (int j = 0; j < 3; j++) {
        float ga = 2 * (cxx * g.a[j] + cxy * g.b[j]), gb = 2 * (cxy * g.a[j] + cyy * g.b[j]);
        g00 += ga * g.M[j]; g02 += ga * g.M[6 + j]; g11 += gb * g.M[3 + j]; g12 += gb * g.M[6 + j];
        float m0 = g.j00 * ga * g.scale[j], m1 = g.j11 * gb * g.scale[j], m2 = (g.j02 * ga + g.j12 * gb) * g.scale[j];
        float by_log_scale = 0;
        for (int k = 0; k < 3; k++) {
            N[3 * k + j] = c[3 * k] * m0 + c[3 * k + 1] * m1 + c[3 * k + 2] * m2;
            by_log_scale += N[3 * k + j] * g.Q[3 * k + j];
        }
        g_log_scales[3 * i + j] = by_log_scale;
    }
    float fx = c[12] / (g.z * g.z), fy = c[13] / (g.z * g.z), tx = g.x / g.z, ty = g.y / g.z;
    float free_x = tx > c[19] && tx < c[20] ? g02 * fx : 0.0f, free_y = ty > c[21] && ty < c[22] ? g12 * fy : 0.0f;
    float gx = free_x - gu * c[12] / g.z, gy = free_y - gv * c[13] / g.z;
    float gz = (g00 - g02 * g.sx) * fx + (g11 - g12 * g.sy) * fy - free_x * g.sx - free_y * g.sy;
    gz += gu * fx * g.x + gv * fy * g.y + by_depth;

    // the rotation
    float w = g.q[0], x = g.q[1], y = g.q[2], z = g.q[3];
    float by[4] = {
        2 * (x * (N[7] - N[5]) + y * (N[2] - N[6]) + z * (N[3] - N[1])),
        2 * (y * (N[1] + N[3]) + z * (N[2] + N[6]) + w * (N[7] - N[5]) - 2 * x * (N[4] + N[8])),
        2 * (x * (N[1] + N[3]) + z * (N[5] + N[7]) + w * (N[2] - N[6]) - 2 * y * (N[0] + N[8])),
        2 * (x * (N[2] + N[6]) + y * (N[5] + N[7]) + w * (N[3] - N[1]) - 2 * z * (N[0] + N[4])),
    };
    float along = w * by[0] + x * by[1] + y * by[2] + z * by[3];
    for (int k = 0; k < 4; k++) g_quaternions[4 * i + k] = (by[k] - g.q[k] * along) * g.inverse;

    // features and their direction
    float d[3], basis[16], by_basis[16] = {0}, slope[3] = {0};
    float nearness = direction(means + 3 * i, c, d);
    sh_basis(d[0], d[1], d[2], degree, basis);
    for (int channel = 0; channel < channels; channel++) {
        float sum = 0;
        for (long long slot = box[10]; slot < box[10] + tiles[i]; slot++) sum += slots[slot * columns + SUMS + channel];
        if (c[26] > 0 && row[HEAD + channel] <= 0) sum = 0;
        for (int k = 0; k < (degree + 1) * (degree + 1); k++) {
            long long at = (i * harmonics + k) * channels + channel;
            g_sh[at] = basis[k] * sum;
            by_basis[k] += sh[at] * sum;
        }
    }
    if (degree > 0) sh_slope(d[0], d[1], d[2], degree, by_basis, slope);
    along = slope[0] * d[0] + slope[1] * d[1] + slope[2] * d[2];
    for (int k = 0; k < 3; k++)
        g_means[3 * i + k] = c[3 * k] * gx + c[3 * k + 1] * gy + c[3 * k + 2] * gz + (slope[k] - d[k] * along) * nearness;
}
"""  # fmt: skip


class CudaRenderer(torch.autograd.Function):
    """``render_gaussians`` for float32 tensors on a CUDA device: image, alpha, depth, visible."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Float[Tensor, "n 3"],
        log_scales: Float[Tensor, "n 3"],
        quaternions: Float[Tensor, "n 4"],
        opacity_logits: Float[Tensor, " n"],
        sh: Float[Tensor, "n k c"],
        background: Float[Tensor, "c _ _"],
        camera: Cameras,
        sh_degree: int,
        settings: SplattingSettings,
        rgb: bool,
    ) -> tuple[Tensor, ...]:
        height, width = camera.image_size
        device, n, (harmonics, channels) = means.device, len(means), sh.shape[1:]
        parameters = tuple(p.detach().contiguous() for p in (means, log_scales, quaternions, opacity_logits, sh))
        options = [settings.dilation, settings.near, float(settings.antialiased), float(rgb)]
        view = torch.tensor([*camera_values(camera), *options], dtype=torch.float32).to(device)
        passes = -(-(channels + 1) // _PASS)
        table = torch.empty(n, _HEAD + passes * _PASS, device=device)
        whole, stride = table.view(torch.int32), table.shape[1]
        tiles = torch.zeros(n, dtype=torch.int64, device=device)
        MODULE.launch("project", n, *parameters, view, table, whole, tiles, n, stride, harmonics, channels, sh_degree, height, width)
        visible = tiles > 0
        depths = torch.where(visible, table[:, _HEAD + channels], torch.inf)
        order = torch.sort(depths, stable=True).indices
        ranks = torch.empty_like(order).scatter_(0, order, torch.arange(n, device=device))
        ends = tiles.cumsum(0)
        keys = torch.empty(int(ends[-1]) if n else 0, dtype=torch.int64, device=device)
        across, down = -(-width // TILE), -(-height // TILE)
        MODULE.launch("list_pairs", n, whole, ends - tiles, ranks, keys, n, stride, across)
        keys = keys.sort().values
        listed = order[keys & 0xFFFFFFFF]
        starts = torch.searchsorted(keys, torch.arange(across * down + 1, device=device) << 32)
        planes = torch.empty(passes * _PASS, height, width, device=device)
        transmittance = torch.empty(1, height, width, device=device)
        grid = (across * down, 1, 1)
        for number in range(passes):
            arguments = (table, whole, starts, listed, planes, transmittance, stride, number, height, width)
            MODULE.launch_grid("blend", grid, (TILE * TILE, 1, 1), *arguments)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(visible)
        ctx.save_for_backward(*parameters, background, planes, transmittance, view, table, tiles, listed, starts)
        ctx.sh_degree = sh_degree
        image = planes[:channels] + transmittance * background
        return image, 1 - transmittance, planes[channels : channels + 1].clone(), visible

    @staticmethod
    def backward(ctx: Any, g_image: Tensor | None, g_alpha: Tensor | None, g_depth: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        *parameters, background, planes, transmittance, view, table, tiles, listed, starts = ctx.saved_tensors
        n, harmonics, channels = parameters[4].shape
        height, width = planes.shape[1:]
        gradients = torch.zeros_like(planes)
        if g_image is not None:
            gradients[:channels] = g_image
        if g_depth is not None:
            gradients[channels] = g_depth[0]
        g_transmittance = (gradients[:channels] * background).sum(0, keepdim=True)
        if g_alpha is not None:
            g_transmittance = g_transmittance - g_alpha
        passes, stride, columns = len(planes) // _PASS, table.shape[1], _SUMS + len(planes)
        whole, slots = table.view(torch.int32), torch.empty(len(listed), columns, device=table.device)
        light = (gradients * planes).unflatten(0, (passes, _PASS)).sum(1)
        light[0] += (g_transmittance * transmittance)[0]
        for number in range(passes):
            arguments = (table, whole, starts, listed, gradients, light[number], slots, stride, columns, number, height, width)
            MODULE.launch_grid("blend_backward", (len(starts) - 1, 1, 1), (TILE * TILE, 1, 1), *arguments)
        by_parameter = tuple(torch.zeros_like(p) for p in parameters)
        sizes = (n, stride, columns, harmonics, channels, ctx.sh_degree)
        MODULE.launch("project_backward", n, *parameters, view, table, whole, tiles, slots, *by_parameter, *sizes)
        g_background = None
        if ctx.needs_input_grad[5]:
            g_background = (gradients[:channels] * transmittance).sum_to_size(background.shape)
        return *by_parameter, g_background, None, None, None, None


def render_cuda(*arguments: Any) -> GaussianImage:
    """See ``CudaRenderer``."""
    return GaussianImage(*CudaRenderer.apply(*arguments))


def _check(device: torch.device) -> str | None:
    return difference_from_reference(render_cuda, device)


MODULE = CudaModule("gaussians", _SOURCE, ("project", "list_pairs", "blend", "blend_backward", "project_backward"), _check)
