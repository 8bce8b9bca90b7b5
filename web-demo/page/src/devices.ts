// What this browser can compute on, and why not on a GPU.

import type { DeviceName } from "./protocol";

export interface Devices {
  /** Best first. */
  names: DeviceName[];
  /** Why the processor is the best of them. */
  reason: string | null;
}

/** An adapter, or why there is none. */
export async function findAdapter(): Promise<{ adapter: GPUAdapter } | { adapter: null; reason: string }> {
  if (!isSecureContext) {
    return { adapter: null, reason: "this page came over plain http from another machine, and browsers give WebGPU only to https:// and http://127.0.0.1" };
  }
  const { gpu } = navigator as Navigator & { gpu?: GPU };
  if (!gpu) return { adapter: null, reason: "this browser has no WebGPU: Chrome and Edge have it from 113, Safari from 26, Firefox from 141" };
  const adapter = await gpu.requestAdapter().catch(() => null);
  return adapter ? { adapter } : { adapter: null, reason: "this browser has WebGPU, but no adapter answers: its GPU may be switched off, or not supported" };
}

/** Earlier browsers say it at the adapter itself. */
function isSoftware(adapter: GPUAdapter): boolean {
  return adapter.info.isFallbackAdapter || (adapter as GPUAdapter & { isFallbackAdapter?: boolean }).isFallbackAdapter === true;
}

export async function findDevices(): Promise<Devices> {
  const found = await findAdapter();
  if (!found.adapter) return { names: ["cpu"], reason: found.reason };
  // A GPU that is computed in software takes seconds for a token.
  if (isSoftware(found.adapter)) return { names: ["cpu", "webgpu"], reason: "the only WebGPU adapter here is a program without a GPU, which is slower than the processor itself" };
  return { names: ["webgpu", "cpu"], reason: null };
}
