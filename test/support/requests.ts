import type { GenerateRequest } from '../../gateway/request.js'
import { DEFAULT_SAMPLING } from './sampling.js'

/** A short request for the fake model. */
export function requestOf(fields: Partial<GenerateRequest> = {}): GenerateRequest {
  return {
    id: 'req-1',
    model: 'fake',
    input: { kind: 'text', text: 'hi' },
    sampling: DEFAULT_SAMPLING,
    stop: [],
    echo: false,
    n: 1,
    deadlineMs: 0,
    tenant: '',
    ...fields,
  }
}
