import type { DeviceState, VariantDemand } from './state.js'

/** Why a variant fits none of these devices, with figures. */
export function refusal(demand: VariantDemand, candidates: readonly DeviceState[]): string {
  if (demand.devices.length === 0) return 'the device of this engine is not in the configuration any more'
  if (candidates.length === 0) return `none of its devices (${demand.devices.join(', ')}) could be opened`
  const tooLarge = candidates.filter(({ slabBytes }) => demand.blockBytes > slabBytes)
  if (tooLarge.length === candidates.length) {
    return `its KV blocks (${demand.blockBytes} bytes) are larger than the slabs of ${tooLarge.map(({ id }) => id).join(', ')}; start anew to serve it`
  }
  const needs = `needs ${mib(demand.weightBytes)} weights + ${mib(demand.workspaceBytes)} workspace + ${mib(demand.sequenceKvBytes)} KV for one sequence of full length`
  return `${needs}; ${candidates.map(roomOf).join(', ')}`
}

/** Room beside what stays whatever happens. */
function roomOf(device: DeviceState): string {
  const pinned = device.residents.reduce((sum, resident) => sum + (resident.pinned ? resident.bytes : 0), 0)
  const room = Math.max(0, device.budgetBytes - device.overheadBytes - (device.fixedKvBytes ?? 0) - pinned)
  const beside = pinned > 0 ? ` beside ${mib(pinned)} pinned` : ''
  const kv = device.fixedKvBytes === undefined ? '' : ` and ${mib(device.fixedKvBytes)} KV`
  return `${device.id} has ${mib(room)}${kv} of ${mib(device.budgetBytes)} free${beside}`
}

function mib(bytes: number): string {
  return `${Math.ceil(bytes / 2 ** 20)} MiB`
}
