/** How urgent a request is that names no priority. */
import type { GenerateRequest } from './request.js'

/** What a request is for: somebody waits for every word, or for the whole at some time. */
export const URGENCIES = ['interactive', 'batch'] as const

/** One of them. */
export type Urgency = (typeof URGENCIES)[number]

/** Priorities above 0 are batch work to the engine. */
const PRIORITIES: Record<Urgency, number> = { interactive: 0, batch: 10 }

/** The priority that a request asks for, or that of its kind; streams are interactive unless `urgency` says otherwise. */
export function priorityOf({ priority, whole }: GenerateRequest, urgency?: Urgency): number {
  return priority ?? PRIORITIES[urgency ?? (whole ? 'batch' : 'interactive')]
}
