/** Why a variant is not loaded, unloaded or pinned as asked. */
export type ResidencyFault = 'not_found' | 'busy' | 'pinned' | 'does_not_fit' | 'load_failed'

/** Refuses a request of an operator. */
export class ResidencyError extends Error {
  constructor(
    readonly fault: ResidencyFault,
    message: string,
  ) {
    super(message)
    this.name = 'ResidencyError'
  }
}
