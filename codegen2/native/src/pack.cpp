// Packing float32 rows into panels, with scales chosen by error. Runs once a model, so it is written to be read; the
// compiler makes vectors of the inner loops. tests/native_twin.py is its twin.
#include <cmath>
#include <vector>
#include "half.h"
#include "layout.h"

namespace {

// Rounds to nearest even, as nearbyintf does, for |x| < 2^22: the sum has no bits left behind the point. Compilers make
// vectors of it on every machine; of nearbyintf they make calls.
inline float to_whole(float x) { return (x + 12582912.0f) - 12582912.0f; }

// Clipping to whole bounds before rounding is the same as after.
inline float clipped(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

// The groups of 16 rows side by side, w as [column][row]: for 17 scales around max / -8 each takes the one of least
// squared error. Rows are lanes, so errors add up in the order of columns and yet in vectors.
void quantize_groups(const float (*w)[kPanel], uint16_t* scale, uint8_t (*q)[kPanel]) {
    float base[kPanel] = {}, best[kPanel], inverse[kPanel], s[kPanel], error[kPanel], chosen[kPanel] = {};
    uint16_t half[kPanel];
    for (int i = 0; i < kGroup; i++)
        for (int r = 0; r < kPanel; r++) base[r] = std::fabs(w[i][r]) > std::fabs(base[r]) ? w[i][r] : base[r];
    for (int r = 0; r < kPanel; r++) {
        base[r] /= -8.0f;
        best[r] = INFINITY;
        scale[r] = 0;
    }
    for (int f = 0; f < 17; f++) {
        for (int r = 0; r < kPanel; r++) {
            half[r] = float_to_half(base[r] * (0.8f + 0.025f * static_cast<float>(f)));
            s[r] = half_to_float(half[r]);
            const bool usable = s[r] != 0.0f && std::isfinite(s[r]);
            inverse[r] = usable ? 1.0f / s[r] : 0.0f;
            error[r] = usable ? 0.0f : INFINITY;
            s[r] = usable ? s[r] : 0.0f;
        }
        for (int i = 0; i < kGroup; i++)
            for (int r = 0; r < kPanel; r++) {
                const float off = to_whole(clipped(w[i][r] * inverse[r], -8.0f, 7.0f)) * s[r] - w[i][r];
                error[r] += off * off;
            }
        for (int r = 0; r < kPanel; r++) {
            const bool better = error[r] < best[r];
            best[r] = better ? error[r] : best[r];
            chosen[r] = better ? inverse[r] : chosen[r];
            scale[r] = better ? half[r] : scale[r];
        }
    }
    for (int i = 0; i < kGroup; i++)
        for (int r = 0; r < kPanel; r++)
            q[i][r] = static_cast<uint8_t>(static_cast<int>(to_whole(clipped(w[i][r] * chosen[r], -8.0f, 7.0f))) + 8);
}

// One row: for 21 scales from the widest to 0.8 of it, the same.
float quantize_row(const float* w, int k, int8_t* q) {
    float widest = 0.0f;
    for (int i = 0; i < k; i++) widest = std::fmax(widest, std::fabs(w[i]));
    widest /= 127.0f;
    widest = widest == 0.0f ? 1.0f : widest;  // after the division, which makes the smallest numbers 0
    float best = INFINITY, chosen = widest;
    for (int f = 0; f <= 20; f++) {
        const float s = widest * (1.0f - 0.01f * static_cast<float>(f));
        const float inverse = 1.0f / s;
        float sums[16] = {};  // side by side, so that the loop becomes vectors
        int i = 0;
        for (; i + 16 <= k; i += 16)
            for (int j = 0; j < 16; j++) {
                const float off = to_whole(clipped(w[i + j] * inverse, -127.0f, 127.0f)) * s - w[i + j];
                sums[j] += off * off;
            }
        for (; i < k; i++) {
            const float off = to_whole(clipped(w[i] * inverse, -127.0f, 127.0f)) * s - w[i];
            sums[0] += off * off;
        }
        double error = 0.0;
        for (const float sum : sums) error += static_cast<double>(sum);
        if (static_cast<float>(error) < best) {
            best = static_cast<float>(error);
            chosen = s;
        }
    }
    for (int i = 0; i < k; i++) {
        q[i] = static_cast<int8_t>(static_cast<int>(to_whole(clipped(w[i] / chosen, -127.0f, 127.0f))));
    }
    return chosen;
}

void pack_int4_panel(const float* rows, int n_rows, int k, int64_t kp, uint8_t* out) {
    for (int64_t b = 0; b < kp / kBlock; b++) {
        uint8_t* block = out + b * kInt4Block;
        auto* scales = reinterpret_cast<uint16_t*>(block);
        uint8_t q[kBlock][kPanel];
        for (int g = 0; g < 2; g++) {
            float w[kGroup][kPanel] = {};
            const int64_t first = b * kBlock + g * kGroup;
            for (int r = 0; r < n_rows; r++)
                for (int c = 0; c < kGroup && first + c < k; c++) w[c][r] = rows[static_cast<size_t>(r) * k + first + c];
            quantize_groups(w, scales + g * kPanel, q + g * kGroup);
        }
        for (int j = 0; j < 8; j++)
            for (int r = 0; r < kPanel; r++)
                for (int t = 0; t < 4; t++)  // low nibbles come before high ones
                    block[64 + j * 64 + r * 4 + t] = static_cast<uint8_t>(q[8 * j + t][r] | q[8 * j + 4 + t][r] << 4);
    }
}

void pack_panel(int32_t kind, const float* rows, int n_rows, int k, int64_t kp, uint8_t* out, float* scale) {
    if (kind == kInt4) {
        pack_int4_panel(rows, n_rows, k, kp, out);
        return;
    }
    std::vector<float> row(static_cast<size_t>(kp), 0.0f);
    std::vector<int8_t> q8(static_cast<size_t>(kp), 0);
    for (int r = 0; r < kPanel; r++) {
        const bool there = r < n_rows;
        for (int c = 0; c < k; c++) row[c] = there ? rows[static_cast<size_t>(r) * k + c] : 0.0f;
        if (kind == kFloat32) {
            auto* o = reinterpret_cast<float*>(out);
            for (int64_t c = 0; c < kp; c++) o[c * 16 + r] = row[c];
        } else if (kind == kBFloat16) {
            auto* o = reinterpret_cast<uint16_t*>(out);
            for (int64_t c = 0; c < kp; c++) o[c / 2 * 32 + r * 2 + c % 2] = float_to_bfloat16(row[c]);
        } else if (kind == kInt8) {
            scale[r] = there ? quantize_row(row.data(), static_cast<int>(k), q8.data()) : 0.0f;
            if (!there) std::fill(q8.begin(), q8.end(), static_cast<int8_t>(0));
            for (int64_t c = 0; c < kp; c++) out[c / 4 * 64 + r * 4 + c % 4] = static_cast<uint8_t>(q8[c] + 128);
        }
    }
}

}  // namespace

CG2_API int64_t cg2_packed_bytes(int32_t kind, int32_t n, int32_t k) {
    return round_up(n, kPanel) / kPanel * static_cast<int64_t>(panel_bytes(kind, round_up(k, kBlock)));
}

CG2_API int32_t cg2_pack(int32_t kind, const float* w, int32_t n, int32_t k, void* out, float* scale) {
    const int64_t kp = round_up(k, kBlock);
    const size_t bytes = panel_bytes(kind, kp), count = static_cast<size_t>(n) * static_cast<size_t>(k);
    uint32_t worst = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t magnitude = bits_of(w[i]) & 0x7FFFFFFF;
        worst = magnitude > worst ? magnitude : worst;
    }
    if (worst >= 0x7F800000) return 1;
    for (int32_t row = 0; row < n; row += kPanel) {
        const int n_rows = n - row < kPanel ? n - row : kPanel;
        pack_panel(kind, w + static_cast<size_t>(row) * k, n_rows, k, kp,
                   static_cast<uint8_t*>(out) + static_cast<size_t>(row / kPanel) * bytes, scale ? scale + row : nullptr);
    }
    return 0;
}
