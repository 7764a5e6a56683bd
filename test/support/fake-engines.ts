/** Fake engines of a test file: each test starts its own. */
import { afterEach } from 'vitest'
import { FinishReason, type Submit } from '../../proto/gen/edgeshift/v1/engine.js'
import { Collector, fakeEngine, type FakeEngine, type FakeEngineOptions } from './fake-engine.js'

/** Starts fake engines and stops those of a test after it. */
export function fakeEngines(): (options?: FakeEngineOptions) => FakeEngine {
  const started: FakeEngine[] = []
  afterEach(async () => {
    for (const { engine } of started.splice(0)) await engine.stop(FinishReason.CANCELLED)
  })
  return (options) => {
    const fake = fakeEngine(options)
    started.push(fake)
    return fake
  }
}

/** Submits a request and gathers its answer. */
export function collect({ engine }: FakeEngine, request: Submit): Collector {
  const collector = new Collector()
  engine.submit(request, collector)
  return collector
}
