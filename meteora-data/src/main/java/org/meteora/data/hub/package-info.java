/** Downloads from a Hugging Face hub: resumed, checked, never outside their folder. */
package org.meteora.data.hub;
