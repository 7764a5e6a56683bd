/** What a variant asks of a device, from its file alone. */
export interface VariantDemand {
  /** "model:rung". */
  name: string
  /** Ids of the devices it may be on, preferred first. */
  devices: readonly string[]
  weightBytes: number
  workspaceBytes: number
  /** KV of one sequence of the largest length. */
  sequenceKvBytes: number
}

/** A device's memory before anything is on it. */
export interface DeviceBudget {
  id: string
  budgetBytes: number
  /** Taken by the device's own context and threads. */
  overheadBytes: number
}

/** Where everything goes. */
export interface ResidencyPlan {
  /** Variant name -> device id. */
  placements: Map<string, string>
  /** Variant name -> why it has no place, with figures. */
  refusals: Map<string, string>
  /** Device id -> bytes of its KV arena. */
  kvBytes: Map<string, number>
}

/** Share of a budget that the KV arena may take beyond what one sequence needs. */
const KV_SHARE = 0.5

interface OpenDevice extends DeviceBudget {
  taken: number
  /** Smallest arena with which every variant on it can run a sequence of full length. */
  minKv: number
}

/**
 * Places variants in the order given, each on the first of its devices where weights, workspace and one full
 * sequence's KV fit; the rest of a budget, up to a share, becomes KV memory. Pure: nothing is reserved.
 */
export function planResidency(devices: readonly DeviceBudget[], demands: readonly VariantDemand[]): ResidencyPlan {
  const open = new Map<string, OpenDevice>()
  for (const device of devices) open.set(device.id, { ...device, taken: device.overheadBytes, minKv: 0 })
  const plan: ResidencyPlan = { placements: new Map(), refusals: new Map(), kvBytes: new Map() }
  for (const demand of demands) {
    const candidates = demand.devices.flatMap((id) => open.get(id) ?? [])
    const device = candidates.find((candidate) => place(candidate, demand))
    if (device) plan.placements.set(demand.name, device.id)
    else plan.refusals.set(demand.name, refusal(demand, candidates))
  }
  for (const { id, budgetBytes, taken, minKv } of open.values()) {
    plan.kvBytes.set(id, Math.max(minKv, Math.min(Math.floor(budgetBytes * KV_SHARE), budgetBytes - taken)))
  }
  return plan
}

function place(device: OpenDevice, demand: VariantDemand): boolean {
  const taken = device.taken + demand.weightBytes + demand.workspaceBytes
  const minKv = Math.max(device.minKv, demand.sequenceKvBytes)
  if (taken + minKv > device.budgetBytes) return false
  device.taken = taken
  device.minKv = minKv
  return true
}

function refusal(demand: VariantDemand, candidates: readonly OpenDevice[]): string {
  if (candidates.length === 0) return `none of its devices (${demand.devices.join(', ')}) could be opened`
  const needs = `needs ${mib(demand.weightBytes)} weights + ${mib(demand.workspaceBytes)} workspace + ${mib(demand.sequenceKvBytes)} KV for one sequence of full length`
  const free = candidates.map(
    (d) => `${d.id} has ${mib(Math.max(0, d.budgetBytes - d.taken))} of ${mib(d.budgetBytes)} free`,
  )
  return `${needs}; ${free.join(', ')}`
}

function mib(bytes: number): string {
  return `${Math.ceil(bytes / 2 ** 20)} MiB`
}
