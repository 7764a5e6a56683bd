import { expect, it } from 'vitest'
import { decisionTimes, FORMS, manyModels } from '../support/route-load.js'

/** Far above what a decision takes (npm run bench:route), so that a busy machine passes and a slip of an order does not. */
const MOST_MICROSECONDS = 500

it.each(Object.entries(FORMS))('decides among 50 models on 8 devices in microseconds: %s', (_, form) => {
  const times = decisionTimes(manyModels(50, 8), form, 1000)
  expect(times[500]).toBeLessThan(MOST_MICROSECONDS)
})
