/** What code of the gateway throws. */
import { GatewayError } from '../../gateway/errors.js'

/** The GatewayError that `work` throws, undefined when it throws nothing; any other error goes on. */
export function refusal(work: () => unknown): GatewayError | undefined {
  try {
    work()
  } catch (error) {
    if (error instanceof GatewayError) return error
    throw error
  }
  return undefined
}

/** The same of work that has to be refused. */
export function errorOf(work: () => unknown): GatewayError {
  const error = refusal(work)
  if (error) return error
  throw new Error('nothing was thrown')
}
