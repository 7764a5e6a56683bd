/** A real device or model with something changed, for tests of what follows from it. */
import type { NativeDevice, NativeModel } from '../../engine/native.js'

/** A device that differs in how it loads. */
export function withLoads(device: NativeDevice, loadModel: NativeDevice['loadModel']): NativeDevice {
  return {
    elasticKv: device.elasticKv,
    packedLayout: device.packedLayout,
    discardKv: (range) => device.discardKv(range),
    usedBytes: () => device.usedBytes(),
    hostCacheBytes: () => device.hostCacheBytes(),
    readBandwidth: () => device.readBandwidth(),
    copyKv: (copy) => device.copyKv(copy),
    close: () => device.close(),
    loadModel,
  }
}

/** A model that differs in what it says of itself or in how it steps. */
export function withChanges(
  model: NativeModel,
  changes: Partial<Pick<NativeModel, 'weightBytes' | 'blockBytes' | 'step'>>,
): NativeModel {
  const { weightBytes, workspaceBytes, blockBytes, roundingError, origin, packedFault, packedBytes } = model
  return {
    ...{ weightBytes, workspaceBytes, blockBytes, roundingError, origin, packedFault, packedBytes },
    setSlot: (slot, state) => model.setSlot(slot, state),
    step: (batch) => model.step(batch),
    giveMasks: (masks) => model.giveMasks(masks),
    savePacked: (to) => model.savePacked(to),
    unload: () => model.unload(),
    ...changes,
  }
}
