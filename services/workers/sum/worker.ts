import { implement } from '#shared/worker/implement.ts'
import { sum } from './contract.ts'

export default implement(sum, ({ num1, num2 }) => num1 + num2)
