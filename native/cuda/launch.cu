#include "cuda/launch.h"

namespace edgeshift::cuda {

Result<DeviceTraits> device_traits(int index) {
  DeviceTraits traits;
  traits.index = index;
  int major = 0, minor = 0;
  auto read = [&](int& value, cudaDeviceAttr attribute) {
    return to_status(cudaDeviceGetAttribute(&value, attribute, index), "device attributes");
  };
  ES_RETURN_IF_ERROR(read(traits.multiprocessors, cudaDevAttrMultiProcessorCount));
  ES_RETURN_IF_ERROR(read(traits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin));
  ES_RETURN_IF_ERROR(read(major, cudaDevAttrComputeCapabilityMajor));
  ES_RETURN_IF_ERROR(read(minor, cudaDevAttrComputeCapabilityMinor));
  if (major < 8) return Status(Code::unsupported, "this build needs a GPU of compute capability 8.0 or newer");
  traits.dependent = major >= 9;
  traits.fast_products = minor == 0 && major < 10;
#ifdef EDGESHIFT_HOPPER
  traits.hopper = major == 9 && minor == 0;
#endif
  return traits;
}

}  // namespace edgeshift::cuda
