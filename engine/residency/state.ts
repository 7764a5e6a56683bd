/** What the residency policy decides from: variants, devices and what is on them. */

/** What a variant asks of a device, from its file alone or, once loaded, as it was taken. */
export interface VariantDemand {
  /** "model:rung". */
  name: string
  /** Ids of the devices it may be on. */
  devices: readonly string[]
  /** `devices` is an order of preference. */
  ordered: boolean
  weightBytes: number
  workspaceBytes: number
  blockBytes: number
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

/** A variant on a device. */
export interface ResidentState {
  name: string
  /** Weights and workspace. */
  bytes: number
  /** KV slabs of one sequence of the largest length, bytes. */
  minKvBytes: number
  /** KV slabs that its sequences use now, bytes. */
  usedKvBytes: number
  pinned: boolean
  /** Has sequences, running or waiting. */
  busy: boolean
  /** When it was loaded; any clock. */
  loadedAt: number
}

/** A device as it stands. */
export interface DeviceState extends DeviceBudget {
  slabBytes: number
  /** The KV arena's bytes where they are taken once and for all; undefined where it shrinks and grows. */
  fixedKvBytes: number | undefined
  /** Least recently used first. */
  residents: readonly ResidentState[]
  /** Something is being loaded or unloaded here. */
  changing: boolean
}

/** A device with nothing on it whose KV arena can be of any size. */
export function emptyDevice(budget: DeviceBudget, slabBytes: number): DeviceState {
  return { ...budget, slabBytes, fixedKvBytes: undefined, residents: [], changing: false }
}
