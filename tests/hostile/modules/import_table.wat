(module
  (import "env" "__indirect_function_table" (table 0 funcref))
  (memory (export "memory") 1)
  (func (export "_start")))
