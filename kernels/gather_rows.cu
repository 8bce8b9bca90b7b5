// gather_rows: out[t] = table[ids[t]].
//
// Variants: UNIT=4|2|16
//
// A block copies one row, a thread every blockDim.x-th unit of UNIT bytes, the widest that divides the rows. Moves each
// byte once each way. Any number of rows and columns; `stride` is in units.

#if UNIT == 16
typedef uint4 Unit;
#elif UNIT == 4
typedef unsigned int Unit;
#else
typedef unsigned short Unit;
#endif

extern "C" __global__ void gather_rows(const Unit* table, long long stride, const int* ids, Unit* out, int units) {
    start_next_kernel();
    wait_for_previous_kernel();
    const Unit* row = table + ids[blockIdx.x] * stride;
    Unit* to = out + (long long)blockIdx.x * units;
    for (int i = threadIdx.x; i < units; i += blockDim.x) {
        to[i] = row[i];
    }
}
