/* SPDX-License-Identifier: Apache-2.0
 *
 * Graphs: a launch of an executable graph is work like a kernel, with an estimate of its own. What is captured into a
 * graph runs, and is paid, when that is launched.
 */
#include "cuda/launch.h"

#include <stddef.h>

CUresult cuGraphLaunch(CUgraphExec exec, CUstream hStream) {
    struct vgpu__launch launch;
    CUresult result = vgpu__launch_begin(&launch, vgpu__launch_key(exec, 0), hStream);
    if (result != CUDA_SUCCESS)
        return result;
    VGPU_CALL(result, cuGraphLaunch, exec, hStream);
    vgpu__launch_end(&launch, result);
    return result;
}

CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream hStream) {
    struct vgpu__launch launch;
    CUresult result = vgpu__launch_begin(&launch, vgpu__launch_key(exec, 0), vgpu__per_thread(hStream));
    if (result != CUDA_SUCCESS)
        return result;
    VGPU_CALL(result, cuGraphLaunch_ptsz, exec, hStream);
    vgpu__launch_end(&launch, result);
    return result;
}

#define CAPTURE(change, symbol, ...)                                                                                   \
    do {                                                                                                               \
        CUresult result;                                                                                               \
        bool counts = vgpu__inside == 0;                                                                               \
        VGPU_CALL(result, symbol, __VA_ARGS__);                                                                        \
        if (counts && (result == CUDA_SUCCESS || (change) < 0))                                                        \
            vgpu__launch_capture(change);                                                                              \
        return result;                                                                                                 \
    } while (0)

CUresult cuStreamBeginCapture(CUstream hStream) {
    CAPTURE(1, cuStreamBeginCapture, hStream);
}

CUresult cuStreamBeginCapture_ptsz(CUstream hStream) {
    CAPTURE(1, cuStreamBeginCapture_ptsz, hStream);
}

CUresult cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode) {
    CAPTURE(1, cuStreamBeginCapture_v2, hStream, mode);
}

CUresult cuStreamBeginCapture_v2_ptsz(CUstream hStream, CUstreamCaptureMode mode) {
    CAPTURE(1, cuStreamBeginCapture_v2_ptsz, hStream, mode);
}

CUresult cuStreamEndCapture(CUstream hStream, CUgraph *graph) {
    CAPTURE(-1, cuStreamEndCapture, hStream, graph);
}

CUresult cuStreamEndCapture_ptsz(CUstream hStream, CUgraph *graph) {
    CAPTURE(-1, cuStreamEndCapture_ptsz, hStream, graph);
}
