// How weights lie in memory, for every instruction set alike: panels of 16 rows, so that 16 outputs grow side by side
// in one register, and blocks of 64 columns.
//
//   float32   [panel][column][row]                       64 B a column
//   bfloat16  [panel][column/2][row][2]                  64 B a pair of columns
//   int8      [panel][column/4][row][4], value + 128     64 B a quad of columns; one float32 scale a row, apart
//   int4      [panel][column/64] { 16 float16 scales of columns 0..31, 16 of columns 32..63, then 8 x 64 B:
//                                  byte [row][t] of pair j: low nibble column 8j + t, high column 8j + 4 + t, value + 8 }
//
// A panel's quad of int8 is what one dot-product instruction eats:   row 0: c c c c | row 1: c c c c | ... | row 15
// Rows and columns that fill up a panel or a block are zeros.
#pragma once
#include <cstddef>
#include <cstdint>
#include "codegen2.h"

constexpr int kPanel = 16, kBlock = 64, kGroup = 32;
constexpr size_t kInt4Block = 64 + 8 * 64;  // bytes of 16 rows x 64 columns

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline size_t panel_bytes(int32_t kind, int64_t kp) {
    const size_t blocks = static_cast<size_t>(kp) / kBlock;
    switch (kind) {
        case kFloat32: return blocks * kBlock * 64;
        case kBFloat16: return blocks * kBlock * 32;
        case kInt8: return blocks * kBlock * 16;
        default: return blocks * kInt4Block;
    }
}
