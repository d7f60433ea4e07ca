// A CUDA device that does nothing, for fake tensors in a PyTorch without CUDA:
// autograd asks for a device's streams and events even where tensors have no
// memory. It is loaded before PyTorch looks for CUDA, with LD_PRELOAD.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {

struct CUDAHooks
    : CUDAHooksInterface { // PyTorch looks for a class of this name
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const noexcept override {}
  bool hasCUDA() const noexcept override { return true; }
  bool isBuilt() const noexcept override { return true; }
  bool isAvailable() const noexcept override { return true; }
  bool hasPrimaryContext(DeviceIndex) const noexcept override { return true; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  DeviceIndex getCurrentDevice() const noexcept override { return 0; }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

} // namespace at

namespace c10::impl {

struct NoDevice final : NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const noexcept override {
    return Device(DeviceType::CUDA, 0);
  }
  Device exchangeDevice(Device) const noexcept override { return getDevice(); }
  Stream getStream(Device) const noexcept override {
    return Stream(Stream::DEFAULT, getDevice());
  }
  Stream getDefaultStream(Device device) const noexcept override {
    return getStream(device);
  }
  Stream exchangeStream(Stream) const noexcept override {
    return getStream(getDevice());
  }
  void record(void **, const Stream &, const DeviceIndex,
              const EventFlag) const noexcept override {}
  void block(void *, const Stream &) const noexcept override {}
  bool queryEvent(void *) const noexcept override { return true; }
  void destroyEvent(void *, const DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, NoDevice);

} // namespace c10::impl
