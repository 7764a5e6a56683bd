#include "cuda/attention_decode_kernel.cuh"
#include "cuda/attention_prefill_kernel.cuh"

namespace edgeshift::cuda {

template Status launch_decode<KvDtype::fp16>(DecodeParams, const Launch&);
template Status launch_prefill<KvDtype::fp16>(PrefillParams, const Launch&);

}  // namespace edgeshift::cuda
