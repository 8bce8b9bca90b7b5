// carry_tokens: tokens[t] = choices[sources[t] - 1] where sources[t] > 0.
//
// A thread takes a token. What was chosen stays on the device, so that a step can be enqueued before the choices of the
// one before it are known. Moves a few bytes per token: it is as long as its launch.

extern "C" __global__ void carry_tokens(int* tokens, const int* sources, const int* choices, int count) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t < count && sources[t] > 0) {
        tokens[t] = choices[sources[t] - 1];
    }
}
